"""Which open runs have lost their process, which cannot be judged from here, and how to close them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.runtime.process import ProcessIdentity, from_tags, liveness
from pipeline.tracking.ownership import end_run
from pipeline.tracking.tags import Role, RunOutcome, Tag, TrialOutcome, is_untouched

UNRESPONSIVE_SECONDS = 300.0  # of a run on another host, before it is spoken of


@dataclass(frozen=True)
class OpenRun:
    """A run that MLflow has as RUNNING, as far as can be told from here."""

    run: Run
    process: ProcessIdentity | None  # None: nobody has said that it is his
    fate: Literal["lives", "gone", "elsewhere"]
    heard: float  # when it last gave a sign, in seconds since the epoch

    def silence(self) -> float:
        """For how many seconds it has given no sign."""
        return max(0.0, time.time() - self.heard)


def open_runs(run: Run) -> OpenRun:
    """What can be told of the process of a run."""
    tags = run.data.tags
    process = from_tags(tags)
    try:
        heard = datetime.fromisoformat(tags[Tag.HEARTBEAT]).timestamp()
    except (KeyError, ValueError):
        heard = run.info.start_time / 1000
    return OpenRun(run, process, liveness(process, heard=heard) if process else "elsewhere", heard)


def close_stale_runs(client: MlflowClient, experiment_id: str) -> list[str]:
    """Close the runs of an experiment whose process on this host is gone; a line for each, and for silent others."""
    return close_lost_run(client, experiment_id) + silent_runs(client, experiment_id)


def close_lost_run(client: MlflowClient, experiment_id: str) -> list[str]:
    """Close as FAILED the open runs of an experiment whose process on this host is gone; returns a line for each."""
    gone = {one.run.info.run_id: one for one in _open(client, experiment_id) if one.fate == "gone"}
    heads = [
        one for one in gone.values() if one.run.data.tags.get(Tag.PARENT_RUN_ID) not in gone
    ]  # who take the others with them
    return [f"closed   run {one.run.info.run_id} ({one.run.info.run_name}): {close_run(client, one)}" for one in heads]


def silent_runs(client: MlflowClient, experiment_id: str) -> list[str]:
    """A line for each open run of an experiment that cannot be judged from here and has been silent for long."""
    found = [one for one in _open(client, experiment_id) if one.fate == "elsewhere"]
    return [
        f"silent   run {one.run.info.run_id} ({one.run.info.run_name}): no sign of "
        f"{one.process or 'the process that was to begin it'} for {one.silence() / 60:.0f} min; if that is dead, "
        f"`mlflow run . -e doctor -P close={one.run.info.run_id}` closes it"
        for one in found
        if one.silence() > UNRESPONSIVE_SECONDS and one.run.data.tags.get(Tag.ROLE) != Role.RESUME
    ]


def close_run(client: MlflowClient, lost: OpenRun, because: str = "") -> str:
    """Close a run whose process is gone, and what is open below it; returns what is said of it.

    Args:
        because: how that is known; empty: it was looked for on this host.
    """
    run_id, tags = lost.run.info.run_id, lost.run.data.tags
    ended, why = tags.get(Tag.OUTCOME, ""), tags.get(Tag.OUTCOME_REASON, "")
    if ended not in set(RunOutcome):  # else it came to write this, and no farther
        ended = "failed"
        because = because or f"{lost.process or 'its process'} was gone, after a kill, a crash or a restart"
        why = f"{because}; {_cure(run_id, tags)}"
    end_run(client, run_id, ended, why, at=lost.heard)
    below = f"tags.`{Tag.PARENT_RUN_ID}` = '{run_id}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([lost.run.info.experiment_id], filter_string=below, max_results=1000):
        if run.data.tags.get(Tag.ROLE) in {Role.TRIAL, Role.FINAL}:
            client.set_tag(run.info.run_id, Tag.TRIAL_STATE, TrialOutcome.LOST.value)
        close_run(client, open_runs(run), because)
    return why or ended


def _open(client: MlflowClient, experiment_id: str) -> list[OpenRun]:
    """The open runs of an experiment, but for what a driver or another program answers for."""
    found = client.search_runs([experiment_id], filter_string="attributes.status = 'RUNNING'", max_results=1000)
    return [open_runs(run) for run in found if from_tags(run.data.tags) or is_untouched(run.data.tags)]


def _cure(run_id: str, tags: Mapping[str, str]) -> str:
    """How to go on with such a run."""
    match tags.get(Tag.ROLE):
        case Role.RUN:
            return f"mlflow run . -P resume={run_id} goes on with it"
        case Role.SEARCH:
            return "the same search goes on with it"
    return "start it again"
