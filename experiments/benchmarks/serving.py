"""What a served model costs and gives: `make bench-serving`, about two minutes.

A network of the recipe's shape with random weights is registered in a store of its own and served on 127.0.0.1 by
`mlflow models serve`. Clients then ask for one PNG file a request, each over a connection of its own and one request
after the other; they run on the same cores.
"""

import base64
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import psutil

from pipeline.config.training import TrainingConfig, read_recipe
from pipeline.runtime.cpu import prefer_onednn
from pipeline.serving.packaging import save_pyfunc

RECIPE, SHAPE, CLASSES = "baseline", (32, 32, 3), 10
CLIENTS = (1, 8, 32)
MOST_REQUESTS, MOST_SECONDS = 2_000, 20.0  # of each number of clients
START_SECONDS = 120.0
NAME = "served"


def main() -> None:
    """Print the tables."""
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "MLFLOW_DISABLE_TELEMETRY": "true"}
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    prefer_onednn()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"XDG_CACHE_HOME": f"{folder}/cache", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        with redirect_stdout(sys.stderr):
            made(Path(folder))
        with served(Path(folder)) as (port, seconds, process):
            print("| start, s | memory after the start, MiB | after the load |\n|---|---|---|")
            idle = memory(process)
            rows = list(loads(port))
            print(f"| {seconds:.1f} | {idle:.0f} | {memory(process):.0f} |\n")
            print("| clients | requests | p50, ms | p99, ms | images/s |\n|---|---|---|---|---|")
            print("\n".join(rows))


def made(folder: Path) -> None:
    """Register a network of the recipe's shape."""
    from pipeline.model.conv_mixer import conv_mixer
    from pipeline.tracking.run import start_run
    from pipeline.tracking.tags import Role

    os.chdir(folder)  # where MLflow's artifacts go
    config = TrainingConfig.build(read_recipe(RECIPE))
    shape = {name: getattr(config, name) for name in ("filters", "depth", "kernel_size", "patch_size")}
    model = conv_mixer(SHAPE, CLASSES, **shape)
    classes = [str(label) for label in range(CLASSES)]
    with start_run(role=Role.RUN) as run:
        run.register_model(
            NAME,
            partial(save_pyfunc, model=model, example=np.zeros(SHAPE, np.uint8), classes=classes),
            classes=classes,
            tags={},
        )


@contextmanager
def served(folder: Path) -> Iterator[tuple[int, float, psutil.Process]]:
    """A server: its port, the seconds until it answered, its process."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{NAME}@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    began = time.perf_counter()
    with open(folder / "server.log", "wb") as log:
        process = psutil.Popen(
            command, cwd=folder, env=os.environ | {"PATH": path}, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        while not answers(port):
            if process.poll() is not None or time.perf_counter() - began > START_SECONDS:
                raise SystemExit((folder / "server.log").read_text())
            time.sleep(0.05)
        yield port, time.perf_counter() - began, process
    finally:
        family = [*process.children(recursive=True), process]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.terminate()
        psutil.wait_procs(family, timeout=10)


def answers(port: int) -> bool:
    """Whether the server is there."""
    with suppress(OSError):
        line = HTTPConnection("127.0.0.1", port, timeout=5)
        line.request("GET", "/ping")
        return line.getresponse().status == 200
    return False


def memory(process: psutil.Process) -> float:
    """MiB that a process and those it started hold alone."""
    family = [process, *process.children(recursive=True)]
    return sum(one.memory_full_info().uss for one in family) / 2**20


def loads(port: int) -> Iterator[str]:
    """A row for each number of clients."""
    import tensorflow as tf

    pixels = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    png = base64.b64encode(tf.io.encode_png(pixels).numpy()).decode()
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[png]]}})
    asked(port, body, until=time.perf_counter() + 1, most=20)  # the first are slower
    for clients in CLIENTS:
        began = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            parts = [
                pool.submit(asked, port, body, until=began + MOST_SECONDS, most=MOST_REQUESTS // clients)
                for _ in range(clients)
            ]
            took = [seconds for part in parts for seconds in part.result()]
        rate = len(took) / (time.perf_counter() - began)
        p50, p99 = (1000 * each for each in (statistics.median(took), statistics.quantiles(took, n=100)[98]))
        yield f"| {clients} | {len(took):,} | {p50:.1f} | {p99:.1f} | {rate:.0f} |"


def asked(port: int, body: str, *, until: float, most: int) -> list[float]:
    """Seconds that each request of one client took."""
    line = HTTPConnection("127.0.0.1", port, timeout=60)
    took: list[float] = []
    while len(took) < most and time.perf_counter() < until:
        began = time.perf_counter()
        line.request("POST", "/invocations", body, {"content-type": "application/json"})
        answer = line.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise SystemExit(content.decode())
        took.append(time.perf_counter() - began)
    line.close()
    return took


if __name__ == "__main__":
    main()
