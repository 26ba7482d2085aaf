"""The pool of worker processes."""

import operator
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.data.worker_pool import worker_pool
from pipeline.runtime.errors import WorkerDied
from tests.support.paths import ROOT


def test_worker_pool_calls_in_other_processes_and_raises_their_errors():
    with worker_pool(2) as call:
        assert call(os.getpid) != os.getpid()
        with pytest.raises(ZeroDivisionError):
            call(operator.truediv, 1, 0)
        assert call(operator.add, 1, 2) == 3


def test_worker_pool_call_that_prints_returns_its_result():
    with worker_pool(2) as call:
        assert call(os.write, 1, b"\n") == 1 and call(print) is None


def test_worker_pool_call_to_a_dead_process_raises():
    with worker_pool(2) as call, pytest.raises(WorkerDied):
        call(os._exit, 3)


def test_worker_pool_works_in_a_script_without_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nfrom pipeline.data.worker_pool import worker_pool\n"
        "with worker_pool(2) as call: print(call(os.getpid))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().isdigit() and done.stderr == ""


def test_workers_end_when_their_parent_is_killed():
    code = (
        "import os, signal; from pipeline.data.worker_pool import worker_pool\n"
        "with worker_pool(2) as call:\n"
        "    print(call(os.getpid), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60)
    worker = Path(f"/proc/{int(done.stdout)}/stat")
    deadline = time.monotonic() + 10
    while worker.exists() and worker.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.02)
