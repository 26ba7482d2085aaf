"""deploy/serve-model.sh with two workers: they count together, and leave nothing."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests

from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.registered_model import NAME, SHAPE
from tests.support.stores import environment

START_SECONDS = 300


@pytest.fixture
def server(registered_once, tmp_path):
    """The address and the process of a started script; its temporary files are in `tmp_path`/temporary."""
    port = free_port()
    (tmp_path / "temporary").mkdir()
    env = environment(registered_once.uri, "registering") | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PORT": str(port),
        "WORKERS": "2",
        "TMPDIR": str(tmp_path / "temporary"),
    }
    with open(tmp_path / "log", "w") as log:
        process = psutil.Popen(
            [ROOT / "deploy" / "serve-model.sh", f"models:/{NAME}@champion"],
            env=env,
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    started = [process]
    try:
        yield f"http://127.0.0.1:{port}", process, started
    finally:
        for one in started:
            with suppress(psutil.NoSuchProcess):
                one.kill()


def is_ready(address):
    with suppress(requests.RequestException):
        return requests.get(f"{address}/ready", timeout=20).status_code == 200
    return False


@pytest.mark.slow
def test_serve_model_with_two_workers_counts_requests_together_and_leaves_nothing(server, tmp_path):
    address, process, started = server
    until = time.monotonic() + START_SECONDS
    while not is_ready(address):
        assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
        time.sleep(0.5)
    started += process.children(recursive=True)
    body = {"inputs": {"image": [np.full(SHAPE, 200).tolist()]}}
    # a connection for each request, so that both workers get some
    answers = [requests.post(f"{address}/invocations", json=body, timeout=60) for _ in range(30)]
    answers.append(requests.post(f"{address}/invocations", json={"inputs": {"image": ["hello!"]}}, timeout=60))
    assert Counter(answer.status_code for answer in answers) == {200: 30, 400: 1}
    for _ in range(6):
        text = requests.get(f"{address}/metrics", timeout=60).text
        assert 'convmixer_serving_requests_total{status="200"} 30.0' in text
        assert 'convmixer_serving_errors_total{kind="file"} 1.0' in text
    assert "POST /invocations" not in (tmp_path / "log").read_text()
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(started, timeout=60)
    assert alive == []
    assert list((tmp_path / "temporary").glob("tmp.*")) == []
