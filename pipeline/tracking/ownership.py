"""Whose a run is: the process that works on it says so in it, beats, and leaves it to another that goes on with it."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from os import environ
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.tracking.fluent import _get_experiment_id

from pipeline.runtime.errors import NothingToDo, Stopped, TrackingError, UsageError
from pipeline.runtime.heartbeat import BEAT_SECONDS, heartbeat
from pipeline.runtime.parent_watch import PROJECT_RUN_ID_ENV
from pipeline.runtime.process import ProcessIdentity, from_tags, this_process
from pipeline.runtime.urls import storage_error
from pipeline.tracking.tags import RunOutcome, Tag, run_outcome_tags

TAG_CHARACTERS = 5000  # a tag may hold 8000


def begin_run(client: MlflowClient, run_id: str | None = None) -> Run:
    """The run of this id, or that `mlflow run` opened, or else a new one; as RUNNING.

    Unlike `mlflow.start_run` it leaves nothing behind that would ask a server when this process ends.
    """
    run_id = run_id or environ.pop(PROJECT_RUN_ID_ENV, None)
    if run_id is None:
        return client.create_run(str(_get_experiment_id()), tags=resolve_tags())
    client.update_run(run_id, status="RUNNING")
    return client.get_run(run_id)


def claim_run(client: MlflowClient, run_id: str, tags: Mapping[str, str] | None = None) -> None:
    """Say in a run that it is this process's from now on; how it ended before is forgotten."""
    tag_run(client, run_id, this_process().tags() | {Tag.HEARTBEAT: _now()} | dict(tags or {}))
    _forget_end(client, client.get_run(run_id))


@contextmanager
def heartbeat_run(
    client: MlflowClient, run_id: str, *, taken: Callable[[ProcessIdentity], None], seconds: float = BEAT_SECONDS
) -> Iterator[None]:
    """Within it a run that was claimed says that its process lives, and opens again if somebody took it for dead.

    Args:
        taken: called, from another thread, with the process that has claimed the run since; it must be left to that.
    """

    def beat() -> None:
        run = client.get_run(run_id)
        if not this_process().tags().items() <= run.data.tags.items():
            if process := from_tags(run.data.tags):
                taken(process)
            return
        client.set_tag(run_id, Tag.HEARTBEAT, _now())
        reopen_run(client, run)

    with heartbeat(beat, seconds=seconds):
        yield


def reopen_run(client: MlflowClient, run: Run) -> None:
    """Open a run again that has ended, and forget how; nothing where it is open."""
    if run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")
        _forget_end(client, run)


@contextmanager
def close_if_unused(client: MlflowClient, run_id: str | None) -> Iterator[None]:
    """Within it the run that `mlflow run` opened is this process's; it is closed if nothing comes to begin in it.

    Work has begun when the variable that names the run is gone.
    """
    if run_id is not None:
        claim_run(client, run_id)
    try:
        yield
    except BaseException as error:
        if run_id is not None and environ.get(PROJECT_RUN_ID_ENV) == run_id:
            stopped = isinstance(error, Stopped)
            end_run(client, run_id, "stopped" if stopped else "failed", f"by {error}" if stopped else str(error))
        raise


def fail_project_run(reason: str) -> None:
    """Say in the run that `mlflow run` opened, where nothing has begun in it, why nothing will."""
    if (run_id := environ.get(PROJECT_RUN_ID_ENV)) is None:
        return
    try:
        client = MlflowClient()
        if client.get_run(run_id).data.tags.keys().isdisjoint({Tag.ROLE, Tag.OUTCOME}):
            end_run(client, run_id, "failed", reason)
    except Exception:  # noqa: BLE001 - the store may be what was refused, and each kind raises its own
        return


def set_parent(client: MlflowClient, child: str, *, parent: str, name: str, role: str) -> None:
    """Put the run that `mlflow run` opened below the one that is meant: `mlflow run` fails if its run is deleted."""
    claim_run(client, child, {Tag.PARENT_RUN_ID: parent, Tag.ROLE: role, Tag.RUN_NAME: name})


@contextmanager
def require_server() -> Iterator[None]:
    """Within it MLflow has to answer.

    Raises:
        UsageError: it does not.
    """
    try:
        yield
    except (NothingToDo, UsageError):
        raise
    except Exception as error:  # noqa: BLE001 - each kind of store raises its own
        if isinstance(error, MlflowException | TrackingError):
            check_store_path()
        raise storage_error("the tracking store", mlflow.get_tracking_uri(), error) from None


def check_store_path() -> None:
    """Refuse a tracking store that is another one for this process than for the one that opened the run.

    Raises:
        UsageError: with the address to use.
    """
    uri = environ.get("MLFLOW_TRACKING_URI", "")
    if re.match(r"sqlite:///[^/]", uri):
        raise UsageError(
            "a sqlite path in MLFLOW_TRACKING_URI must be absolute, since the project runs in its own folder: "
            f"got {uri}; try sqlite:///{Path.cwd()}/mlflow.db"
        )


def end_run(client: MlflowClient, run_id: str, ended: str, reason: str, *, at: float | None = None) -> None:
    """Say how a run ended (finished, failed or stopped) and why, and give it the status that goes with it.

    Args:
        at: when, in seconds since the epoch; None: now.
    """
    tag_run(client, run_id, run_outcome_tags(RunOutcome(ended), reason))
    client.set_terminated(run_id, RunOutcome(ended).status, end_time=int(1000 * at) if at else None)


def tag_run(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags in one call."""
    client.log_batch(run_id, tags=[RunTag(name, value[:TAG_CHARACTERS]) for name, value in tags.items()])


def _forget_end(client: MlflowClient, run: Run) -> None:
    for name in {Tag.OUTCOME, Tag.OUTCOME_REASON} & run.data.tags.keys():
        client.delete_tag(run.info.run_id, name)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
