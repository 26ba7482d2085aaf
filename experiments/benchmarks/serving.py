"""Compare a served model with plain serving: `make bench-serving`, about five minutes.

A network of the recipe's shape with random weights is registered in a temporary store and served on 127.0.0.1 by
`mlflow models serve`, twice: as it is, and by Keras with MLflow's own handling of requests, one by one. The two are
measured in turn, so that other work on the machine meets both. Each client sends one PNG image per request over a
connection of its own, and the next request when it has the answer. Clients and server share the cores.

Then 32 clients send 10,000 good and bad requests, mixed, and every answer is compared with the one that the same
request had alone.
"""

import base64
import itertools
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from arguments import take_no_arguments
from own_store import use_store

from pipeline.config.recipe import read_recipe
from pipeline.config.training import TrainingConfig
from pipeline.runtime.environment import set_environment
from pipeline.runtime.imports import slow_imports

RECIPE, IMAGE_SHAPE, CLASSES = "baseline", (32, 32, 3), 10
CLIENTS = (1, 8, 32)
PLAIN = {"CONVMIXER_SERVING_RUNTIME": "keras", "CONVMIXER_SERVING_WINDOW_MS": "0", "CONVMIXER_SERVING_DIRECT": "0"}
SERVERS: dict[str, dict[str, str]] = {"plain": PLAIN, "served": {}}
# Each number of clients is measured in so many rounds, for so long in each.
ROUNDS, ROUND_SECONDS = 3, 6.0
MIXED_REQUESTS, MIXED_CLIENTS = 10_000, 32
# The first requests are slower.
WARM_UP_REQUESTS, WARM_UP_SECONDS = 20, 1.0
START_SECONDS = 300.0
MODEL_NAME = "served"


class Load(NamedTuple):
    """What clients saw of a server."""

    latencies: list[float]  # seconds
    seconds: float  # that the measurement took


def main() -> None:
    """Print the tables."""
    take_no_arguments(__doc__)
    set_environment(os.environ)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        use_store(f"sqlite:///{folder}/mlflow.db")
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        with redirect_stdout(sys.stderr):
            register_model(Path(folder))
        print("| server | start, s | memory after the start, MiB |\n|---|---|---|")
        ports = {}
        for name, variables in SERVERS.items():
            ports[name], seconds, process = running.enter_context(running_server(Path(folder), name, variables))
            print(f"| {name} | {seconds:.1f} | {memory_mib(process):.0f} |")
        print("\n| clients | server | requests | p50, ms | p99, ms | images/s | ratio |\n|---|---|---|---|---|---|---|")
        loads = measure_in_turn(ports)
        for clients in CLIENTS:
            print("\n".join(table_rows({name: loads[name, clients] for name in SERVERS}, clients)))
        print(f"\n{describe_mixed(ports['served'])}")


def register_model(folder: Path) -> None:
    """Register a network of the recipe's shape, with its artifacts below a folder."""
    # imported here, after the environment has been set
    with slow_imports():
        from pipeline.model.conv_mixer import conv_mixer
        from pipeline.serving.packaging import COMPARED_IMAGES, import_onnx, save_pyfunc
        from pipeline.tracking.lifecycle import start_run
        from pipeline.tracking.tags import Role

        import_onnx()
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
def running_server(folder: Path, name: str, variables: dict[str, str]) -> Iterator[tuple[int, float, psutil.Process]]:
    """Serve the registered model, and yield the port, the seconds until the server answered, and its process."""
    log_file = folder / f"{name}.log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{MODEL_NAME}@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    started = time.perf_counter()
    with open(log_file, "wb") as log:
        process = psutil.Popen(
            command, cwd=folder, env=os.environ | {"PATH": path} | variables, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        while not is_ready(port):
            if process.poll() is not None or time.perf_counter() - started > START_SECONDS:
                raise SystemExit(log_file.read_text())
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


def measure_in_turn(ports: dict[str, int]) -> dict[tuple[str, int], Load]:
    """Return the load of each server and number of clients, measured in several rounds."""
    body = split(encoded_png(np.random.default_rng(0), IMAGE_SHAPE))
    for port in ports.values():
        send_requests(port, body, until=time.perf_counter() + WARM_UP_SECONDS, max_requests=WARM_UP_REQUESTS)
    loads = {(name, clients): Load([], 0.0) for name in ports for clients in CLIENTS}
    for _, clients, name in itertools.product(range(ROUNDS), CLIENTS, ports):
        before, now = loads[name, clients], measure_load(ports[name], body, clients)
        loads[name, clients] = Load(before.latencies + now.latencies, before.seconds + now.seconds)
    return loads


def measure_load(port: int, body: str, clients: int) -> Load:
    """Return the load of one round."""
    started = time.perf_counter()
    send = partial(send_requests, port, body, until=started + ROUND_SECONDS)
    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(send) for _ in range(clients)]
        latencies = [seconds for future in futures for seconds in future.result()]
    return Load(latencies, time.perf_counter() - started)


def table_rows(loads: dict[str, Load], clients: int) -> Iterator[str]:
    """Yield a Markdown row for each server; the ratio is that of images/s to the first server's."""
    first: float | None = None
    for name, (latencies, seconds) in loads.items():
        rate = len(latencies) / seconds
        first = first or rate
        p50, p99 = 1000 * statistics.median(latencies), 1000 * statistics.quantiles(latencies, n=100)[98]
        yield f"| {clients} | {name} | {len(latencies):,} | {p50:.1f} | {p99:.1f} | {rate:.0f} | {rate / first:.2f} |"


def describe_mixed(port: int) -> str:
    """Return what became of good and bad requests that many clients sent."""
    bodies = mixed_bodies()
    alone = [post(HTTPConnection("127.0.0.1", port, timeout=60), body) for body in bodies]
    refused = sum(status != 200 for status, _ in alone)
    order = np.random.default_rng(1).integers(0, len(bodies), MIXED_REQUESTS)
    parts = np.array_split(order, MIXED_CLIENTS)
    started = time.perf_counter()
    with ThreadPoolExecutor(MIXED_CLIENTS) as pool:
        results = [result for part in pool.map(partial(compare_answers, port, bodies, alone), parts) for result in part]
    seconds = time.perf_counter() - started
    return (
        f"{MIXED_REQUESTS:,} mixed requests of {MIXED_CLIENTS} clients, of {len(bodies)} kinds, {refused} of them bad, "
        f"in {seconds:.0f} s: {results.count('same'):,} answered as alone, to the last digit, "
        f"{results.count('close')} within 1e-6, {results.count('wrong')} otherwise, {results.count('lost')} lost"
    )


def compare_answers(port: int, bodies: list[str], alone: list[tuple[int, str]], numbers: np.ndarray) -> list[str]:
    """Send requests one after the other; say of each whether its answer is the same as alone, close, wrong or lost."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    results = []
    for number in numbers:
        try:
            status, content = post(connection, bodies[number])
        except (OSError, HTTPException):
            results.append("lost")
            connection.close()
            continue
        if (status, content) == alone[number]:
            results.append("same")
        else:
            is_close = status == alone[number][0] == 200 and are_close(content, alone[number][1])
            results.append("close" if is_close else "wrong")
    connection.close()
    return results


def are_close(content: str, other: str) -> bool:
    """Return whether two answers name the same classes, with probabilities within 1e-6."""
    rows, others = json.loads(content)["predictions"], json.loads(other)["predictions"]
    return len(rows) == len(others) and all(
        row["class"] == expected["class"]
        and np.allclose(list(row["probabilities"].values()), list(expected["probabilities"].values()), atol=1e-6)
        for row, expected in zip(rows, others, strict=True)
    )


def mixed_bodies() -> list[str]:
    """Return good requests, with one image and several, files and arrays, and some that are refused."""
    rng = np.random.default_rng(2)
    files = [encoded_png(rng, (side, side + 3, 3)) for side in (17, 32, 40, 64, 100)]
    array = rng.integers(0, 256, IMAGE_SHAPE).tolist()
    good = [split(file) for file in (*files, *(encoded_png(rng, IMAGE_SHAPE) for _ in range(5)))]
    good += [split(*files), split(array, files[0]), json.dumps({"inputs": {"image": files[:2]}})]
    good += [json.dumps({"dataframe_records": [{"image": file} for file in files[2:]]})]
    cut = base64.b64encode(base64.b64decode(files[0])[:100]).decode()
    bad = [
        split("hello!"),
        split(cut),
        split(files[1], cut),
        split([[1, 2]]),
        split(np.full(IMAGE_SHAPE, 256).tolist()),
    ]
    bad += [split(None), split(*files * 60), '{"inputs": ', "[]", json.dumps({"inputs": {"image": []}})]
    return good + bad


def encoded_png(rng: np.random.Generator, shape: tuple[int, ...]) -> str:
    """Return random pixels as a PNG file in base64."""
    import tensorflow as tf

    pixels = rng.integers(0, 256, shape).astype(np.uint8)
    return base64.b64encode(tf.io.encode_png(pixels).numpy()).decode()


def split(*images: object) -> str:
    """Return the body of a request with these images."""
    return json.dumps({"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}})


def post(connection: HTTPConnection, body: str) -> tuple[int, str]:
    """Send a request, and return status and text of the answer."""
    connection.request("POST", "/invocations", body, {"content-type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read().decode()


def send_requests(port: int, body: str, *, until: float, max_requests: float = math.inf) -> list[float]:
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
        status, content = post(connection, body)
        if status != 200:
            raise SystemExit(content)
        latencies.append(time.perf_counter() - started)
    connection.close()
    return latencies


if __name__ == "__main__":
    main()
