"""Ownership of runs: a process claims the run that it works on, sends its heartbeat, and says how the run ended.

On one machine the lock of the run keeps all but one process from it. Processes of several machines see each other's
claims alone: tags of the run, which a tracking store sets without a look at what they were.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_GIT_BRANCH, MLFLOW_GIT_REPO_URL
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES

from pipeline.runtime.code_version import code_version
from pipeline.runtime.errors import Deleted, NothingToDo, Rejected, Stopped, TrackingError, UsageError
from pipeline.runtime.files import cache_folder, make_private, try_lock
from pipeline.runtime.heartbeat import BEAT_SECONDS, heartbeat
from pipeline.runtime.process import ProcessIdentity, announce_process, this_process
from pipeline.runtime.tables import markdown_text
from pipeline.runtime.text import one_line
from pipeline.runtime.urls import mask_password, storage_error
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.tags import Role, RunOutcome, Tag, run_outcome_tags

GIT_TAGS = frozenset((Tag.GIT_COMMIT, MLFLOW_GIT_BRANCH, MLFLOW_GIT_REPO_URL))
LOCKS = "locks"  # folder in the cache of the lock files of runs
# between a claim and the look at who has the run then; longer where the store is slow
CLAIM_SECONDS = 2.0
# the beginning of a message about the value of a setting
REFUSED_SETTING = re.compile(r"(\w+) must ")


@contextmanager
def lock_run(run_id: str) -> Iterator[bool]:
    """Context manager: hold the lock of a run on this machine and yield True, or False if another process holds it.

    Where the cache takes no locks, it yields True.
    """
    with ExitStack() as stack:
        try:
            is_mine = stack.enter_context(try_lock(make_private(cache_folder(LOCKS)) / run_id, remove=True))
        except OSError:
            is_mine = True
        yield is_mine


def begin_run(
    client: TrackingClient,
    run_id: str | None = None,
    *,
    experiment_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Run:
    """Open a run again, or a new one that this process has claimed, and return it as RUNNING.

    Unlike `mlflow.start_run` this leaves nothing behind that would ask a server when the process ends.

    Args:
        client: The tracking store.
        run_id: The run to open again; None opens a new one.
        experiment_id: Where a new run belongs; None is the present experiment.
        tags: Of a new run.

    Raises:
        Deleted: The run or the experiment has been deleted.
    """
    if run_id is None:
        known = resolve_tags()
        own = {name: value for name, value in known.items() if name not in _foreign_git_tags(known)}
        # claimed at once: one whose process is killed now would stay open for ever, as nobody's
        return client.create_run(experiment_id or client.experiment_id(), tags={**own, **(tags or {}), **_claim()})
    client.get_active_run(run_id)
    client.set_run_status(run_id, "RUNNING")
    run = client.get_run(run_id)
    # a run that is resumed keeps what it was trained with
    foreign = set() if Tag.ROLE in run.data.tags else _foreign_git_tags(run.data.tags)
    for name in foreign:
        client.delete_tag(run_id, name)
    return client.get_run(run_id) if foreign else run


def claim_run(client: TrackingClient, run_id: str, tags: Mapping[str, str] | None = None) -> None:
    """Name this process in a run as its owner, set tags, and remove the outcome of an earlier process."""
    client.set_tags(run_id, {**(tags or {}), **_claim()})
    _forget_outcome(client, client.get_run(run_id))


def forget_claim(client: TrackingClient, run: Run) -> None:
    """Remove the tags of a claim of this process, so that the next one sets the tags for people before them."""
    for name in run.data.tags.keys() & {*this_process().tags(), Tag.HEARTBEAT}:
        client.delete_tag(run.info.run_id, name)


def check_unchanged(client: TrackingClient, seen: Run) -> None:
    """Raise UsageError if another process has claimed a run, or sent its heartbeat, since it was seen."""
    if last_claim(client.get_run(seen.info.run_id)) != last_claim(seen):
        raise UsageError(_taken(seen))


def confirm_claim(client: TrackingClient, run: Run, *, claim_seconds: float) -> None:
    """Wait for claims that other machines make at the same time, and raise UsageError if the last one is another's.

    Args:
        client: The tracking store.
        run: The run, which this process has claimed.
        claim_seconds: How long the store took to set the claim; the others may take as long.
    """
    time.sleep(max(CLAIM_SECONDS, 2 * claim_seconds))
    if not is_owner(client.get_run(run.info.run_id)):
        raise UsageError(_taken(run))


def is_owner(run: Run) -> bool:
    """Return whether this process is the last one to have claimed a run."""
    return this_process().tags().items() <= run.data.tags.items()


def last_claim(run: Run) -> tuple[object, ...]:
    """Return what every claim and every heartbeat of a run changes."""
    return ProcessIdentity.from_tags(run.data.tags), run.data.tags.get(Tag.HEARTBEAT)


def _taken(run: Run) -> str:
    return (
        f"a run goes on in one process: another one has resumed run {run.info.run_id} ({run.info.run_name}) at this "
        "moment; wait for it, or stop it first"
    )


@contextmanager
def heartbeat_run(
    client: TrackingClient,
    run_id: str,
    *,
    superseded: Callable[[ProcessIdentity], None] = lambda process: None,
    seconds: float = BEAT_SECONDS,
) -> Iterator[None]:
    """Send the heartbeat of a claimed run, and open the run again if another process took its owner for dead.

    Args:
        client: The tracking store.
        run_id: The run.
        superseded: Called, from another thread, with the process that has claimed the run since; the run is that
            process's then, and gets no heartbeat.
        seconds: Between two heartbeats.
    """

    def beat() -> None:
        run = client.get_run(run_id)
        if not is_owner(run):
            if process := ProcessIdentity.from_tags(run.data.tags):
                superseded(process)
            return
        client.set_tags(run_id, {Tag.HEARTBEAT: _now()})
        reopen_run(client, run)

    with heartbeat(beat, seconds=seconds):
        yield


def reopen_run(client: TrackingClient, run: Run) -> None:
    """Open a run again that has ended and remove its outcome; leave an open one as it is."""
    if run.info.status != "RUNNING":
        client.set_run_status(run.info.run_id, "RUNNING")
        _forget_outcome(client, run)


def set_parent(client: TrackingClient, run_id: str, *, parent: str, name: str, role: Role) -> None:
    """Claim a run and put it below another one, with a name and a role of its own."""
    claim_run(client, run_id, {Tag.PARENT_RUN_ID: parent, Tag.ROLE: str(role), Tag.RUN_NAME: name})


def end_run(
    client: TrackingClient, run_id: str, outcome: RunOutcome, reason: str, *, end_time: float | None = None
) -> None:
    """End a run with the tags and MLflow's status of an outcome.

    Args:
        client: The tracking store.
        run_id: The run.
        outcome: How it ended.
        reason: Why; may be empty. Secrets in its URLs are masked, as everybody who sees the run reads it.
        end_time: When, in seconds since the epoch; None is now.
    """
    client.set_tags(run_id, run_outcome_tags(outcome, mask_password(reason)))
    client.terminate_run(run_id, outcome.status, end_time=int(1000 * end_time) if end_time else None)


def refuse_run(
    client: TrackingClient, run_id: str, reason: str, *, name: str = "", end_time: float | None = None
) -> None:
    """End a run as FAILED in which nothing could begin, with the reason in its description and in its name.

    Args:
        client: The tracking store.
        run_id: The run.
        reason: Why nothing could begin.
        name: Of the run, if MLflow made up the one that it has; empty names what was refused.
        end_time: When, in seconds since the epoch; None is now.
    """
    reason = mask_password(reason)
    end_run(client, run_id, RunOutcome.FAILED, reason, end_time=end_time)
    tags = {Tag.DESCRIPTION: markdown_text(reason)}
    if is_generated_name(client.get_run(run_id).info.run_name):
        setting = REFUSED_SETTING.match(reason)
        tags[Tag.RUN_NAME] = name or f"refused: {setting[1] if setting else one_line(reason, most=40)}"
    client.set_tags(run_id, tags)


def is_generated_name(name: str) -> bool:
    """Return whether MLflow made up a name (`bold-ant-123`) because nobody gave one."""
    words = name.split("-")
    return len(words) == 3 and words[0] in _GENERATOR_PREDICATES and words[1] in _GENERATOR_NOUNS and words[2].isdigit()


def outcome_of_error(error: BaseException) -> tuple[RunOutcome, str]:
    """Return how a run ends that an exception ends, and the reason."""
    if isinstance(error, Stopped):
        return RunOutcome.STOPPED, f"by {error}"
    return RunOutcome.FAILED, f"{type(error).__name__}: {error}"


@contextmanager
def require_server() -> Iterator[None]:
    """Raise UsageError in place of whatever a tracking store raises that does not answer, or refuses to begin a run."""
    try:
        yield
    except (NothingToDo, UsageError):
        raise
    except Deleted as error:
        raise UsageError(str(error)) from None
    except Rejected as error:
        check_store_path()
        raise UsageError(f"the tracking store must accept the run: {error}") from None
    except Exception as error:  # noqa: BLE001 - each kind of store raises its own
        if isinstance(error, MlflowException | TrackingError):
            check_store_path()
        raise storage_error("the tracking store", mlflow.get_tracking_uri(), error) from None


def check_store_path() -> None:
    """Raise UsageError if the tracking store is another one for this process than for the one that opened the run.

    `mlflow run` runs the project in its own folder, so a relative path there names another file.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if re.match(r"sqlite:///[^/]", uri):
        raise UsageError(
            "a sqlite path in MLFLOW_TRACKING_URI must be absolute, since the project runs in its own folder: "
            f"got {uri}; try sqlite:///{Path.cwd()}/mlflow.db"
        )


def _claim() -> dict[str, str]:
    """Return the tags that name this process as the owner of a run."""
    return {**announce_process().tags(), Tag.HEARTBEAT: _now()}


def _forget_outcome(client: TrackingClient, run: Run) -> None:
    for name in {Tag.OUTCOME, Tag.OUTCOME_REASON} & run.data.tags.keys():
        client.delete_tag(run.info.run_id, name)


def _foreign_git_tags(tags: Mapping[str, str]) -> set[str]:
    """Return the names of MLflow's tags of a Git repository, if that is not the one that tracks this program.

    MLflow takes the first repository around the program's file, whether or not the file is in it.
    """
    commit = tags.get(Tag.GIT_COMMIT)
    if commit is None:
        return set()
    version = code_version()
    return set() if version and version.commit == commit else set(GIT_TAGS & tags.keys())


def _now() -> str:
    # so exact that two heartbeats differ also where the clock has been set back in between
    return datetime.now(UTC).isoformat(timespec="microseconds")
