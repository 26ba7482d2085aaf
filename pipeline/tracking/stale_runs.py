"""Stale runs: open runs whose process is dead, which are closed, and unresponsive ones, which are reported.

This host knows which of its own processes are alive. A process that it cannot see is alive while its heartbeat changes
under the eyes of this one. How old a heartbeat is by the clocks of two hosts is only told to a person.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from mlflow.entities import Run

from pipeline.runtime.heartbeat import BEAT_SECONDS
from pipeline.runtime.process import Liveness, ProcessIdentity, liveness
from pipeline.runtime.shell import project_command
from pipeline.tracking.client import TrackingClient, tracking_uri
from pipeline.tracking.ownership import end_run, last_claim, refuse_run
from pipeline.tracking.project_launcher import launcher_liveness
from pipeline.tracking.tags import Role, RunOutcome, Tag, TrialOutcome, is_untouched

# without a heartbeat, before a run on another host is reported
UNRESPONSIVE_SECONDS = 300.0
# three heartbeats: for how long one has to stand still, while it is watched, until its process counts as dead
SILENCE_SECONDS = 3 * BEAT_SECONDS
WATCH_PAUSE_SECONDS = 5.0
NOT_BEGUN = "`mlflow run` was gone before the program began: its environment failed, or it was killed"


@dataclass(frozen=True)
class OpenRun:
    """A run whose status is RUNNING, and what this host can tell of its process."""

    run: Run
    process: ProcessIdentity | None  # None: no process has claimed the run
    liveness: Liveness
    last_seen: float  # the last heartbeat, or else the run's start, in seconds since the epoch

    def __str__(self) -> str:
        return f"run {self.run.info.run_id} ({self.run.info.run_name})"

    def last_seen_age(self) -> float:
        """Return the seconds since the last heartbeat, as far as the clocks of two hosts agree; for messages."""
        return max(0.0, time.time() - self.last_seen)


def inspect_run(run: Run) -> OpenRun:
    """Return what this host can tell of the process of an open run."""
    tags = run.data.tags
    process = ProcessIdentity.from_tags(tags)
    try:
        last_seen = datetime.fromisoformat(tags[Tag.HEARTBEAT]).timestamp()
    except (KeyError, ValueError):
        last_seen = run.info.start_time / 1000
    if process is None and is_untouched(tags):
        launcher = launcher_liveness(run.info.run_id, tags, tracking_uri=tracking_uri())
        return OpenRun(run, None, launcher, last_seen)
    return OpenRun(run, process, liveness(process) if process else "unknown", last_seen)


def silent_runs(client: TrackingClient, runs: Sequence[OpenRun]) -> list[OpenRun]:
    """Watch the heartbeats of open runs, for SILENCE_SECONDS at most, and return the runs whose process is silent."""
    until = time.monotonic() + SILENCE_SECONDS
    silent = list(runs)
    while silent and time.monotonic() < until:
        time.sleep(WATCH_PAUSE_SECONDS)
        silent = [one for one in silent if last_claim(client.get_run(one.run.info.run_id)) == last_claim(one.run)]
    return silent


def close_stale_runs(client: TrackingClient, experiment_id: str) -> list[str]:
    """Close as FAILED the open runs of an experiment whose process on this host is dead.

    Returns:
        A line for each run that was closed, and for each unresponsive one, which only a person can judge.
    """
    open_runs = _open_runs(client, experiment_id)
    stale = {one.run.info.run_id: one for one in open_runs if one.liveness == "dead"}
    # a run that is closed closes those below it
    heads = [one for one in stale.values() if one.run.data.tags.get(Tag.PARENT_RUN_ID) not in stale]
    lines = [f"closed stale {one}: {close_run(client, one)}" for one in heads if not _has_begun(client, one)]
    return lines + [_describe_unresponsive(one) for one in open_runs if _is_unresponsive(one)]


def close_run(client: TrackingClient, stale: OpenRun, reason: str = "") -> str:
    """Close a run whose process is dead, the open runs below it, and the search of which it was the last driver.

    Those runs stay open that another process has claimed, such as a report on a search, unless that is dead as well.

    Args:
        client: The tracking store.
        stale: The run.
        reason: How it is known that the process is dead; empty if this host looked for it.

    Returns:
        The reason that the run gives for its end.
    """
    run_id, tags = stale.run.info.run_id, stale.run.data.tags
    if stale.process is None and is_untouched(tags) and Tag.OUTCOME not in tags:
        reason = f"{reason or NOT_BEGUN}; start it again"
        refuse_run(client, run_id, reason, name="not begun", end_time=stale.last_seen)
        return reason
    outcome, outcome_reason = tags.get(Tag.OUTCOME, ""), tags.get(Tag.OUTCOME_REASON, "")
    # a process that was killed between its last two calls has named the outcome, but not set the status
    if outcome not in set(RunOutcome):
        outcome = RunOutcome.FAILED
        reason = reason or f"{stale.process or 'its process'} was gone, after a kill, a crash or a restart"
        outcome_reason = f"{reason}; {_how_to_continue(run_id, tags)}"
    end_run(client, run_id, RunOutcome(outcome), outcome_reason, end_time=stale.last_seen)
    below = f"tags.`{Tag.PARENT_RUN_ID}` = '{run_id}' and attributes.status = 'RUNNING'"
    for child in map(inspect_run, list(client.search_runs([stale.run.info.experiment_id], below))):
        if child.process != stale.process and _may_live(child):
            continue
        if child.run.data.tags.get(Tag.ROLE) in {Role.TRIAL, Role.FINAL, Role.ENSEMBLE}:
            client.set_tags(child.run.info.run_id, {Tag.TRIAL_STATE: str(TrialOutcome.LOST)})
        close_run(client, child, reason)
    if tags.get(Tag.ROLE) == Role.DRIVER:
        _close_search_without_drivers(client, stale.run)
    return outcome_reason or outcome


def _close_search_without_drivers(client: TrackingClient, driver: Run) -> None:
    """Close the search of a driver unless it has a process of its own, or other drivers of it are open."""
    experiment, search_id = [driver.info.experiment_id], driver.data.tags.get(Tag.PARENT_RUN_ID)
    is_open = "attributes.status = 'RUNNING'"
    below = f"tags.`{Tag.PARENT_RUN_ID}` = '{search_id}' and tags.`{Tag.ROLE}` = '{Role.DRIVER}'"
    if any(client.search_runs(experiment, f"{below} and {is_open}")):
        return
    for search in map(inspect_run, client.search_runs(experiment, f"attributes.run_id = '{search_id}' and {is_open}")):
        if not _may_live(search):
            close_run(client, search, "all of its drivers were gone")


def _may_live(one: OpenRun) -> bool:
    """Return whether a process that may be alive has claimed a run."""
    return one.process is not None and one.liveness != "dead"


def _has_begun(client: TrackingClient, seen: OpenRun) -> bool:
    """Return whether a program has begun in a run, or has ended it, since it was seen without a process."""
    if seen.process:
        return False
    run = client.get_run(seen.run.info.run_id)
    return run.info.status != "RUNNING" or last_claim(run) != last_claim(seen.run)


def _open_runs(client: TrackingClient, experiment_id: str) -> list[OpenRun]:
    """Return the open runs of an experiment, without those for which a driver or another program is responsible."""
    found = client.search_runs([experiment_id], "attributes.status = 'RUNNING'")
    return [
        inspect_run(run) for run in found if ProcessIdentity.from_tags(run.data.tags) or is_untouched(run.data.tags)
    ]


def _is_unresponsive(one: OpenRun) -> bool:
    """Return whether a run that this host cannot judge has sent no heartbeat for long."""
    # it ends with the run above it, which sends the heartbeat
    has_own_heartbeat = one.run.data.tags.get(Tag.ROLE) not in {Role.RESUME, Role.FOLD}
    return one.liveness == "unknown" and one.last_seen_age() > UNRESPONSIVE_SECONDS and has_own_heartbeat


def _describe_unresponsive(one: OpenRun) -> str:
    return (
        f"{one} has sent no heartbeat for {one.last_seen_age() / 60:.0f} min: if "
        f"{one.process or 'the process that was to begin it'} is dead, "
        f"`{project_command('doctor', '--close', one.run.info.run_id)}` closes it"
    )


def _how_to_continue(run_id: str, tags: Mapping[str, str]) -> str:
    """Return how a user continues the work of such a run."""
    match tags.get(Tag.ROLE):
        case Role.RUN:
            return f"`{project_command('train', '--resume', run_id)}` resumes it"
        case Role.FOLD:
            return f"`{project_command('train', '--resume', tags[Tag.PARENT_RUN_ID])}` resumes the run above it"
        case Role.SEARCH | Role.DRIVER:
            return "the same search resumes it"
    return "start it again"
