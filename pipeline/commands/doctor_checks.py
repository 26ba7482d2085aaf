"""The checks of the command `doctor`: Python and its packages, the cache, the tracking store, its runs, TensorFlow."""

import json
import os
import platform
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

import psutil

from pipeline.notifications.receivers import URL, VARIABLES
from pipeline.runtime.compilation_cache import describe_compilation_cache
from pipeline.runtime.environment import describe_overridden
from pipeline.runtime.errors import NotFound, TrackingError, UsageError
from pipeline.runtime.files import cache_folder, check_cache_writable
from pipeline.runtime.process import this_process
from pipeline.runtime.text import one_line, shown
from pipeline.runtime.urls import TRACKING_URI, mask_password, storage_error
from pipeline.tracking.client import TrackingClient, tracking_uri
from pipeline.tracking.local_store import check_local_store, sqlite_file
from pipeline.tracking.outbox.delivery import ASIDE, describe_all_set_aside, send_pending, take_back_set_aside
from pipeline.tracking.ownership import claim_run, forget_claim, is_generated_name
from pipeline.tracking.project_run import ProjectRun
from pipeline.tracking.stale_runs import (
    OpenRun,
    close_run,
    close_stale_runs,
    inspect_run,
    silent_runs,
)
from pipeline.tracking.tags import Role, Tag

PROJECT_FOLDER = Path(__file__).parents[2]
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)  # what requirements.lock was resolved for
PINNED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", re.MULTILINE)
LISTED_PACKAGES = 5  # in a message; the others are counted
INSTALL_REMEDY = "`mlflow run` with an environment manager, or `make demo`, creates a matching environment"

GB = 10**9
# With less free, a data set or a checkpoint may not fit.
ERROR_FREE_BYTES = GB
WARNING_FREE_BYTES = 5 * GB

TEXT_FILE = "doctor.txt"  # the artifact by which the store is checked

# Importing TensorFlow from a slow network folder takes a minute.
TENSORFLOW_SECONDS = 180.0
TENSORFLOW_CODE = """
import json
import tensorflow as tf
from pipeline.runtime import device
selected = device.select_device("all")
assert float(tf.reduce_sum(tf.matmul(tf.ones((8, 8)), tf.ones((8, 8))))) == 512.0
precision = device.precision_for(selected)
print(json.dumps({"version": tf.__version__, "device": str(selected), "precision": precision,
                  "unused": device.unused_gpu(selected)}))
"""


@dataclass(frozen=True)
class CheckResult:
    """One line for the user, which ends with a remedy where one is needed."""

    state: Literal["ok", "warning", "error"]
    text: str

    def __str__(self) -> str:
        return f"{self.state:8} {self.text}"


def check_python() -> Iterator[CheckResult]:
    """Check the version of the interpreter."""
    found = f"Python {platform.python_version()} in {sys.prefix}"
    if OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        yield CheckResult("ok", found)
    else:
        oldest, newest = (".".join(map(str, number)) for number in (OLDEST_PYTHON, NEWEST_PYTHON))
        yield CheckResult("error", f"{found} is not one of {oldest} to {newest}: {INSTALL_REMEDY}")


def check_packages(project: Path = PROJECT_FOLDER) -> Iterator[CheckResult]:
    """Check the installed packages against requirements.lock.

    Only the packages that pyproject.toml asks for have to be installed: the lock holds those of every platform.

    Args:
        project: The folder of the two files.
    """
    try:
        lock = (project / "requirements.lock").read_text(encoding="utf-8")
        required = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    except OSError as error:
        yield CheckResult("warning", f"versions could not be checked: {error.filename}: {error.strerror}")
        return
    pinned: dict[str, set[str]] = {}  # a platform may have a version of its own
    for name, number in PINNED.findall(lock):
        pinned.setdefault(name, set()).add(number)
    installed = {name: _installed_version(name) for name in pinned}
    missing = [name for name, _ in PINNED.findall("\n".join(required)) if installed.get(name) is None]
    differing = [
        f"{name} {number} (pinned: {' or '.join(sorted(pinned[name]))})"
        for name, number in installed.items()
        if number is not None and number not in pinned[name]
    ]
    if missing:
        yield CheckResult("error", f"not installed: {', '.join(missing)}; {INSTALL_REMEDY}")
    if differing:
        yield CheckResult("warning", f"other versions than in requirements.lock: {_first(differing)}; {INSTALL_REMEDY}")
    if not missing and not differing:
        number_installed = sum(1 for number in installed.values() if number)
        yield CheckResult("ok", f"{number_installed} packages, each in the version of requirements.lock")


def check_environment(environ: Mapping[str, str] | None = None) -> Iterator[CheckResult]:
    """Name the user's variables and files that configure libraries and have no effect here.

    Args:
        environ: The variables; None is those that this process was started with.
    """
    try:
        lines = list(describe_overridden(psutil.Process().environ() if environ is None else environ))
    except UsageError as error:
        yield CheckResult("error", str(error))
        return
    for line in lines:
        yield CheckResult("warning", f"{line}: it would decide a result")
    if not lines:
        yield CheckResult("ok", "no variable or file configures libraries in a way that would decide a result")


def check_cache() -> Iterator[CheckResult]:
    """Check the folder of decoded data sets and checkpoints: whether it can be written, its disk, and what it holds."""
    try:
        check_cache_writable()
    except UsageError as error:
        yield CheckResult("error", str(error))
        return
    yield check_disk(cache_folder(), "the cache")
    datasets, checkpoints = _subfolders(cache_folder("data")), _subfolders(cache_folder("checkpoints"))
    yield CheckResult(
        "ok",
        f"cache {cache_folder()}: {len(datasets)} decoded data sets ({_gigabytes(datasets):.1f} GB), checkpoints of "
        f"{len(checkpoints)} unfinished runs ({_gigabytes(checkpoints):.1f} GB), {describe_compilation_cache()}",
    )


def check_disk(folder: Path, content: str) -> CheckResult:
    """Check the free space of the disk of a folder, which need not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = psutil.disk_usage(str(existing)).free
    text = f"{free / GB:.1f} GB free for {content} in {folder}"
    if free >= WARNING_FREE_BYTES:
        return CheckResult("ok", text)
    state: Literal["warning", "error"] = "error" if free < ERROR_FREE_BYTES else "warning"
    return CheckResult(state, f"{text}: delete files, or use another folder")


def check_store() -> Iterator[CheckResult]:
    """Read the tracking store, and write to the run that `mlflow run` opened, or else to an experiment."""
    uri = tracking_uri()
    if refusal := _local_store_refusal():
        yield CheckResult("error", refusal)
        return
    if folder := _folder_of_missing_store(uri):
        yield CheckResult("ok", f"tracking store {mask_password(uri)}: the first run creates it in {folder}")
        return
    start = time.monotonic()
    try:
        artifact_uri = _write_to_store()
    except Exception as error:  # noqa: BLE001 - each kind of store raises its own
        yield CheckResult("error", str(storage_error("the tracking store", uri, error)))
        return
    seconds = time.monotonic() - start
    yield CheckResult("ok", f"tracking store {mask_password(uri)}: answers and can be written ({seconds:.1f} s)")
    artifacts = urlsplit(artifact_uri)
    if artifacts.scheme in {"", "file"}:
        yield check_disk(Path(url2pathname(artifacts.path)), "artifacts")


def _write_to_store() -> str:
    """Write a tag and a file to the tracking store, and return the URI of the folder of artifacts that has the file.

    They go to the run that `mlflow run` opened, unless a program has passed on one in which something has begun, or
    else to an experiment, from which they are removed again: a run of the doctor's would stand among trainings.
    """
    client = TrackingClient()
    text = f"{mask_password(tracking_uri())} can be written\n"
    project_run = ProjectRun.find()
    run = client.get_run(project_run.id) if project_run else None
    if run and Tag.ROLE not in run.data.tags:
        # not through `start_run`: its outbox keeps on disk what the server refuses, and here that is the fault to find
        forget_claim(client, run)
        name = {Tag.RUN_NAME: "doctor"} if is_generated_name(run.info.run_name) else {}
        claim_run(client, run.info.run_id, {Tag.ROLE: Role.DOCTOR, **name})
        client.upload_text(run.info.run_id, text, TEXT_FILE)
        return str(run.info.artifact_uri)
    experiment_id = _any_experiment(client)
    with client.temporary_experiment_tag(experiment_id, Tag.DOCTOR, str(this_process())):
        artifact_uri = str(client.get_experiment(experiment_id).artifact_location)
        client.try_artifact_store(artifact_uri, TEXT_FILE, text)
    return artifact_uri


def check_outbox(*, resend: bool = False) -> Iterator[CheckResult]:
    """Send the records that runs on this machine could not send, and report those that have been set aside.

    Args:
        resend: Try the latter once more.
    """
    if resend:
        take_back_set_aside()
    # of what is set aside, this time or before, all is reported below
    for line in () if _local_store_refusal() else send_pending(each=True):
        if not line.startswith(ASIDE):
            yield CheckResult("ok" if line.startswith("sent") else "warning", line)
    for line in describe_all_set_aside():
        yield CheckResult("warning", line)


def check_open_runs() -> Iterator[CheckResult]:
    """Close the open runs of every experiment whose process on this host is dead, and report unresponsive ones."""
    if _folder_of_missing_store(tracking_uri()) or _local_store_refusal():
        return
    try:
        client = TrackingClient()
        for experiment in client.search_experiments():
            for line in close_stale_runs(client, experiment.experiment_id):
                yield CheckResult("warning", line)
    except Exception as error:  # noqa: BLE001 - each kind of store raises its own
        # the store has a line of its own; what does not need it is still to be checked
        yield CheckResult("warning", f"open runs were not looked for: {one_line(error, most=300)}")


def close_runs(run_ids: Sequence[str]) -> Iterator[CheckResult]:
    """Close open runs that the user knows to be dead, each as FAILED; all of them, or none.

    Raises:
        UsageError: A run does not exist, has ended, or its process is alive or has sent a heartbeat lately.
    """
    if folder := _folder_of_missing_store(tracking_uri()):
        raise UsageError(f"close must name runs of this tracking store: there is none in {folder}")
    client = TrackingClient()
    for run in _find_dead_runs(client, run_ids):
        process = run.process or "its process"
        minutes = run.last_seen_age() / 60
        reason = close_run(client, run, f"closed by hand: {process} has sent no heartbeat for {minutes:.0f} min")
        yield CheckResult("ok", f"closed {run}: {reason}")


def _find_dead_runs(client: TrackingClient, run_ids: Sequence[str]) -> list[OpenRun]:
    """Return open runs that may be closed; those whose process this host cannot see are watched for minutes.

    Raises:
        UsageError: One may not, or does not exist.
    """
    runs = [_find_open_run(client, run_id) for run_id in run_ids]
    to_watch = [run for run in runs if run.liveness == "unknown"]
    silent = silent_runs(client, to_watch)
    alive = [run for run in runs if run.liveness == "alive" or (run in to_watch and run not in silent)]
    for run in alive:
        raise UsageError(
            f"close takes runs whose process is dead: {run} has {run.process or 'a process'}, which is alive: stop "
            "that first"
        )
    return runs


def _find_open_run(client: TrackingClient, run_id: str) -> OpenRun:
    """Return a run that is open.

    Raises:
        UsageError: It has ended, or does not exist.
    """
    try:
        run = inspect_run(client.get_run(run_id))
    except NotFound:
        raise UsageError(f"close must name runs of this tracking store by their ids, got {shown(run_id)}") from None
    except TrackingError as error:
        raise storage_error("the tracking store", tracking_uri(), error) from None
    status = run.run.info.status
    if status != "RUNNING":
        raise UsageError(f"close takes runs that are open: {run} has ended as {status}")
    return run


def check_tensorflow(code: str = TENSORFLOW_CODE) -> Iterator[CheckResult]:
    """Check what TensorFlow computes on, in a process of its own; a GPU that it should use and does not is an error."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # the address of a webhook is nobody else's business
    environ.pop(VARIABLES[URL], None)
    try:
        process = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=TENSORFLOW_SECONDS,
            env=environ,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield CheckResult(
            "error", f"TensorFlow has not computed anything in {TENSORFLOW_SECONDS:.0f} s: check the disk and the GPU"
        )
        return
    if process.returncode:
        lines = process.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"its process ended with {process.returncode}"
        yield CheckResult("error", f"TensorFlow does not work here: {reason}; install requirements.lock again")
        return
    # imports may have printed lines above it
    answer = json.loads(process.stdout.splitlines()[-1])
    yield CheckResult("ok", f"TensorFlow {answer['version']} computes on {answer['device']}, in {answer['precision']}")
    if answer["unused"]:
        yield CheckResult("error", answer["unused"])


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _first(texts: Sequence[str]) -> str:
    """Return the first few texts, and how many more there are."""
    more = f" and {len(texts) - LISTED_PACKAGES} more" if len(texts) > LISTED_PACKAGES else ""
    return ", ".join(texts[:LISTED_PACKAGES]) + more


def _subfolders(parent: Path) -> list[Path]:
    return [path for path in parent.glob("*") if path.is_dir()]


def _gigabytes(folders: Sequence[Path]) -> float:
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file()) / GB


def _any_experiment(client: TrackingClient) -> str:
    """Return the id of an experiment, which is created if there is none."""
    experiment = next(client.search_experiments(), None)
    return experiment.experiment_id if experiment else client.create_experiment("Default")


def _folder_of_missing_store(uri: str) -> Path | None:
    """Return the folder of a SQLite store whose file no run has created yet; None for any other store."""
    file = sqlite_file(uri)
    return file.parent if file and not file.exists() else None


def _local_store_refusal() -> str:
    """Return why a tracking store on this machine cannot be used, which MLflow would try for minutes; or nothing."""
    try:
        check_local_store({TRACKING_URI: tracking_uri()})
    except UsageError as error:
        return str(error)
    return ""
