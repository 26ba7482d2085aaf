"""Whether the tracking store answers, can be written, and which of its open runs have lost their process."""

import json
import os
import platform
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
import psutil
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import cache_folder, check_cache_writable
from pipeline.runtime.text import shown
from pipeline.runtime.urls import mask_password, storage_error
from pipeline.tracking import ownership, stale_runs
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.outbox.delivery import send_pending
from pipeline.tracking.project_run import ProjectRun
from pipeline.tracking.tags import Role, Tag


@dataclass(frozen=True)
class CheckResult:
    """One line for a person; where something is to be done it ends with what."""

    state: Literal["ok", "look", "broken"]
    text: str

    def __str__(self) -> str:
        return f"{self.state:8} {self.text}"


TENSORFLOW_SECONDS = 180.0  # importing TensorFlow from a slow network folder takes a minute
TENSORFLOW_PROBE = """
import json, os
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
from pipeline.runtime.cpu import prefer_onednn
prefer_onednn()
import tensorflow as tf
from pipeline.runtime import device
found = device.select_device("all")
assert float(tf.reduce_sum(tf.matmul(tf.ones((8, 8)), tf.ones((8, 8))))) == 512.0
precision = device.precision_for(found)
print(json.dumps({"version": tf.__version__, "device": str(found), "precision": precision,
                  "unused": device.unused_gpu(found)}))
"""


def check_tensorflow(code: str = TENSORFLOW_PROBE) -> Iterator[CheckResult]:
    """What TensorFlow computes on; a GPU that it should use and does not is something broken."""
    command = [sys.executable, "-c", code]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TENSORFLOW_SECONDS, env=environ, check=False
        )
    except subprocess.TimeoutExpired:
        yield CheckResult(
            "broken", f"TensorFlow has not begun to compute in {TENSORFLOW_SECONDS:.0f} s: look at the disk and the GPU"
        )
        return
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = said[-1] if said else f"its process ended with {done.returncode}"
        yield CheckResult("broken", f"TensorFlow does not compute here: {reason}; install requirements.lock's again")
        return
    told = json.loads(done.stdout.splitlines()[-1])
    yield CheckResult("ok", f"TensorFlow {told['version']} computes on {told['device']}, in {told['precision']}")
    if told["unused"]:
        yield CheckResult("broken", told["unused"])


GB = 10**9
BROKEN_BYTES = GB  # less than this free: a data set or a checkpoint may not fit
LOOK_BYTES = 5 * GB


def check_cache() -> Iterator[CheckResult]:
    """The folder of decoded data sets and checkpoints."""
    try:
        check_cache_writable()
    except UsageError as error:
        yield CheckResult("broken", str(error))
        return
    yield check_disk(cache_folder(), "the cache")
    data, checkpoints = _folders(cache_folder("data")), _folders(cache_folder("checkpoints"))
    yield CheckResult(
        "ok",
        f"cache {cache_folder()}: {len(data)} decoded data sets ({_size(data):.1f} GB), checkpoints of "
        f"{len(checkpoints)} unfinished runs ({_size(checkpoints):.1f} GB)",
    )


def check_disk(folder: Path, what: str) -> CheckResult:
    """How much is free on the disk that a folder lies on, or will."""
    free = psutil.disk_usage(str(next(path for path in (folder, *folder.parents) if path.exists()))).free
    text = f"{free / GB:.1f} GB free for {what} in {folder}"
    if free >= LOOK_BYTES:
        return CheckResult("ok", text)
    return CheckResult("broken" if free < BROKEN_BYTES else "look", f"{text}: make room, or name another folder")


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.glob("*") if path.is_dir()]


def _size(folders: list[Path]) -> float:
    """In GB."""
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file()) / GB


ROOT = Path(__file__).parents[2]
PYTHON = (3, 11)  # what requirements.lock was resolved for
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", re.MULTILINE)
CURE = "`mlflow run` with an environment manager or `make demo` makes an environment that is"


def check_python() -> Iterator[CheckResult]:
    """The interpreter."""
    wanted = ".".join(map(str, PYTHON))
    if sys.version_info[:2] == PYTHON:
        yield CheckResult("ok", f"Python {platform.python_version()} in {sys.prefix}")
    else:
        yield CheckResult("broken", f"Python {platform.python_version()} in {sys.prefix} is not {wanted}: {CURE}")


def check_packages(root: Path = ROOT) -> Iterator[CheckResult]:
    """What is installed against what is pinned; `root` is the project's folder.

    The lock names what any platform and any extra needs, so that only what is asked for by name must be there.
    """
    try:
        pinned = PIN.findall((root / "requirements.lock").read_text(encoding="utf-8"))
        asked = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    except OSError as error:
        yield CheckResult("look", f"versions could not be looked up: {error.filename}: {error.strerror}")
        return
    allowed: dict[str, set[str]] = {}  # by name: a platform may have a version of its own
    for name, number in pinned:
        allowed.setdefault(name, set()).add(number)
    here = {name: _installed(name) for name in allowed}
    missing = [name for name, _ in PIN.findall("\n".join(asked)) if here.get(name) is None]
    others = [
        f"{name} {number} (pinned: {' or '.join(sorted(allowed[name]))})"
        for name, number in here.items()
        if number is not None and number not in allowed[name]
    ]
    if missing:
        yield CheckResult("broken", f"not installed: {', '.join(missing)}; {CURE} whole")
    if others:
        yield CheckResult("look", f"not as requirements.lock has it: {_few(others)}; {CURE}")
    if not missing and not others:
        yield CheckResult("ok", f"{sum(map(bool, here.values()))} packages, each as requirements.lock has it")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _few(texts: list[str], most: int = 5) -> str:
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


TEXT = "doctor.txt"


def check_store() -> Iterator[CheckResult]:
    """Read it, and write a tag and a file to a run: the one that `mlflow run` opened, or one that is deleted again."""
    uri = mlflow.get_tracking_uri()
    if new := _not_there_yet(uri):
        yield CheckResult("ok", f"tracking store {mask_password(uri)}: the first run makes it in {new}")
        return
    began = time.monotonic()
    try:
        client = MlflowClient()
        own = ProjectRun.find()
        run = client.get_run(own.id) if own else client.create_run(_experiment(client), run_name="doctor")
        try:
            ownership.claim_run(
                TrackingClient(client), run.info.run_id, {Tag.ROLE: Role.DOCTOR, Tag.RUN_NAME: "doctor"}
            )
            client.log_text(run.info.run_id, f"{mask_password(uri)} can be written\n", TEXT)
        finally:
            if not own:
                client.set_terminated(run.info.run_id)
                client.delete_run(run.info.run_id)
    except Exception as error:  # noqa: BLE001 - each kind of store raises its own
        yield CheckResult("broken", str(storage_error("the tracking store", uri, error)))
        return
    yield CheckResult(
        "ok", f"tracking store {mask_password(uri)}: answers and can be written ({time.monotonic() - began:.1f} s)"
    )
    artifacts = urlsplit(run.info.artifact_uri)
    if artifacts.scheme in {"", "file"}:
        yield check_disk(Path(url2pathname(artifacts.path)), "artifacts")


def check_open_runs() -> Iterator[CheckResult]:
    """Close what has lost its process on this host, and name what others have been silent about."""
    if _not_there_yet(mlflow.get_tracking_uri()):
        return
    client = MlflowClient()
    for experiment_id in _experiments(client):
        for line in stale_runs.close_stale_runs(TrackingClient(client), experiment_id):
            yield CheckResult("look", line)


def check_outbox() -> Iterator[CheckResult]:
    """Send what runs of this machine could not tell while the tracking server was away."""
    for line in send_pending(each=True):
        yield CheckResult("ok" if line.startswith("sent") else "look", line)


def close_runs(run_ids: tuple[str, ...]) -> Iterator[CheckResult]:
    """Close open runs that somebody knows to be dead, each as FAILED; all of them, or none.

    Raises:
        UsageError: there is no such run, it has ended, or its process has given a sign of late.
    """
    if folder := _not_there_yet(mlflow.get_tracking_uri()):
        raise UsageError(f"close must name runs of this tracking store: there is none in {folder}")
    client = MlflowClient()
    found = [_to_close(client, run_id) for run_id in run_ids]
    for one in found:
        minutes = one.last_seen_age() / 60
        why = f"closed by hand: {one.process or 'its process'} has sent no heartbeat for {minutes:.0f} min"
        said = stale_runs.close_run(TrackingClient(client), one, why)
        yield CheckResult("ok", f"closed {one}: {said}")


def _to_close(client: MlflowClient, run_id: str) -> stale_runs.OpenRun:
    try:
        one = stale_runs.inspect_run(client.get_run(run_id))
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise storage_error("the tracking store", mlflow.get_tracking_uri(), error) from None
        raise UsageError(f"close must name runs of this tracking store by their ids, got {shown(run_id)}") from None
    name = f"run {run_id} ({one.run.info.run_name})"
    if one.run.info.status != "RUNNING":
        raise UsageError(f"close takes runs that are open: {name} has ended as {one.run.info.status}")
    if one.liveness == "lives" or (
        one.liveness == "elsewhere" and one.last_seen_age() < stale_runs.UNRESPONSIVE_SECONDS
    ):
        raise UsageError(
            f"close takes runs whose process is gone: {name} gave a sign {one.last_seen_age():.0f} s ago as "
            f"{one.process or 'a program that does not say who it is'}: stop that first"
        )
    return one


def _experiments(client: MlflowClient) -> Iterator[str]:
    token = None
    while True:
        page = client.search_experiments(page_token=token)
        yield from (experiment.experiment_id for experiment in page)
        if not (token := page.token):
            return


def _experiment(client: MlflowClient) -> str:
    """One that is there."""
    return next(_experiments(client), None) or client.create_experiment("Default")


def _not_there_yet(uri: str) -> Path | None:
    """The folder of a sqlite store that no run has made yet."""
    path = Path(uri.removeprefix("sqlite:///"))
    return path.absolute().parent if uri.startswith("sqlite:///") and not path.exists() else None
