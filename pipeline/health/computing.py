"""Whether TensorFlow computes here, and on what.

It is asked in a process of its own: on a processor that lacks what it was built for, it ends that process.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

from pipeline.health.finding import Finding

SECONDS = 180.0  # importing TensorFlow from a slow network folder takes a minute
CODE = """
import json, os
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
from pipeline.machine.processor import prefer_onednn
prefer_onednn()
import tensorflow as tf
from pipeline.machine import device
found = device.find("all")
assert float(tf.reduce_sum(tf.matmul(tf.ones((8, 8)), tf.ones((8, 8))))) == 512.0
precision = device.precision_for(found)
print(json.dumps({"version": tf.__version__, "device": str(found), "precision": precision,
                  "unused": device.unused_gpu(found)}))
"""


def computing(code: str = CODE) -> Iterator[Finding]:
    """What TensorFlow computes on; a GPU that it should use and does not is something broken."""
    command = [sys.executable, "-c", code]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environ, check=False)
    except subprocess.TimeoutExpired:
        yield Finding("broken", f"TensorFlow has not begun to compute in {SECONDS:.0f} s: look at the disk and the GPU")
        return
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = said[-1] if said else f"its process ended with {done.returncode}"
        yield Finding("broken", f"TensorFlow does not compute here: {reason}; install requirements.lock's again")
        return
    told = json.loads(done.stdout.splitlines()[-1])
    yield Finding("ok", f"TensorFlow {told['version']} computes on {told['device']}, in {told['precision']}")
    if told["unused"]:
        yield Finding("broken", told["unused"])
