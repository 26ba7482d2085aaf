"""Measure a served model's start, memory, latency and throughput: `make bench-serving`, about two minutes.

A network of the recipe's shape with random weights is registered in a temporary store and served on 127.0.0.1 by
`mlflow models serve`. Each client sends one PNG image per request over a connection of its own, and the next request
when it has the answer. Clients and server share the cores.
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

from pipeline.config.recipe import read_recipe
from pipeline.config.training import TrainingConfig
from pipeline.runtime.environment import set_environment

RECIPE, IMAGE_SHAPE, CLASSES = "baseline", (32, 32, 3), 10
CLIENTS = (1, 8, 32)
# for each number of clients
MAX_REQUESTS, MAX_SECONDS = 2_000, 20.0
# The first requests are slower.
WARM_UP_REQUESTS, WARM_UP_SECONDS = 20, 1.0
START_SECONDS = 120.0
MODEL_NAME = "served"


def main() -> None:
    """Print the tables."""
    set_environment(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"XDG_CACHE_HOME": f"{folder}/cache", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        with redirect_stdout(sys.stderr):
            register_model(Path(folder))
        with running_server(Path(folder)) as (port, seconds, process):
            print("| start, s | memory after the start, MiB | after the load |\n|---|---|---|")
            idle = memory_mib(process)
            rows = list(measure_load(port))
            print(f"| {seconds:.1f} | {idle:.0f} | {memory_mib(process):.0f} |\n")
            print("| clients | requests | p50, ms | p99, ms | images/s |\n|---|---|---|---|---|")
            print("\n".join(rows))


def register_model(folder: Path) -> None:
    """Register a network of the recipe's shape, with its artifacts below a folder."""
    # imported here, after the environment has been set
    from pipeline.model.conv_mixer import conv_mixer
    from pipeline.serving.packaging import COMPARED_IMAGES, save_pyfunc
    from pipeline.tracking.lifecycle import start_run
    from pipeline.tracking.tags import Role

    # MLflow stores artifacts below the working directory.
    os.chdir(folder)
    config = TrainingConfig.build(read_recipe(RECIPE))
    shape = {name: getattr(config, name) for name in ("filters", "depth", "kernel_size", "patch_size")}
    model = conv_mixer(IMAGE_SHAPE, CLASSES, **shape)
    classes = [str(label) for label in range(CLASSES)]
    images = np.random.default_rng(0).integers(0, 256, (COMPARED_IMAGES, *IMAGE_SHAPE), np.uint8)
    save = partial(save_pyfunc, model=model, images=images, classes=classes, resize="stretch")
    with start_run(role=Role.RUN) as run:
        run.register_model(MODEL_NAME, save, classes=classes, tags={})


@contextmanager
def running_server(folder: Path) -> Iterator[tuple[int, float, psutil.Process]]:
    """Serve the registered model, and yield the port, the seconds until the server answered, and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{MODEL_NAME}@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    started = time.perf_counter()
    with open(folder / "server.log", "wb") as log:
        process = psutil.Popen(
            command, cwd=folder, env=os.environ | {"PATH": path}, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        while not is_ready(port):
            if process.poll() is not None or time.perf_counter() - started > START_SECONDS:
                raise SystemExit((folder / "server.log").read_text())
            time.sleep(0.05)
        yield port, time.perf_counter() - started, process
    finally:
        processes = [*process.children(recursive=True), process]
        for each in processes:
            with suppress(psutil.NoSuchProcess):
                each.terminate()
        psutil.wait_procs(processes, timeout=10)


def is_ready(port: int) -> bool:
    """Return whether the server answers."""
    with suppress(OSError):
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    return False


def memory_mib(process: psutil.Process) -> float:
    """Return the unique set size of a process and its children, in MiB."""
    processes = [process, *process.children(recursive=True)]
    return sum(each.memory_full_info().uss for each in processes) / 2**20


def measure_load(port: int) -> Iterator[str]:
    """Yield a Markdown row for each number of clients."""
    import tensorflow as tf

    pixels = np.random.default_rng(0).integers(0, 256, IMAGE_SHAPE).astype(np.uint8)
    png = base64.b64encode(tf.io.encode_png(pixels).numpy()).decode()
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[png]]}})
    send_requests(port, body, until=time.perf_counter() + WARM_UP_SECONDS, max_requests=WARM_UP_REQUESTS)
    for clients in CLIENTS:
        started = time.perf_counter()
        until, max_requests = started + MAX_SECONDS, MAX_REQUESTS // clients
        with ThreadPoolExecutor(clients) as pool:
            futures = [
                pool.submit(send_requests, port, body, until=until, max_requests=max_requests) for _ in range(clients)
            ]
            latencies = [seconds for future in futures for seconds in future.result()]
        throughput = len(latencies) / (time.perf_counter() - started)
        p50, p99 = 1000 * statistics.median(latencies), 1000 * statistics.quantiles(latencies, n=100)[98]
        yield f"| {clients} | {len(latencies):,} | {p50:.1f} | {p99:.1f} | {throughput:.0f} |"


def send_requests(port: int, body: str, *, until: float, max_requests: int) -> list[float]:
    """Send requests one after the other and return the latency of each in seconds.

    Args:
        port: The server's.
        body: Of each request.
        until: When to stop, on the clock of time.perf_counter.
        max_requests: After how many requests to stop.
    """
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    latencies: list[float] = []
    while len(latencies) < max_requests and time.perf_counter() < until:
        started = time.perf_counter()
        connection.request("POST", "/invocations", body, {"content-type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise SystemExit(content.decode())
        latencies.append(time.perf_counter() - started)
    connection.close()
    return latencies


if __name__ == "__main__":
    main()
