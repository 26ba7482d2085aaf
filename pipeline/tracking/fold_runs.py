"""The runs below that of a cross-validation, one for each of its folds."""

import logging
import math

from mlflow.entities import Run

from pipeline.runtime.retry import retry
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.errors import is_unavailable
from pipeline.tracking.outbox.delivery import describe_error
from pipeline.tracking.outbox.outbox import PAUSES
from pipeline.tracking.ownership import claim_run
from pipeline.tracking.run import TrackedRun
from pipeline.tracking.tags import Role, RunOutcome, Tag

log = logging.getLogger(__name__)


def find_fold_runs(client: TrackingClient, parent_id: str, experiment_id: str) -> dict[int, Run]:
    """Return the runs of the folds below a run, by the number of the fold, which counts from 1."""
    where = f"tags.`{Tag.PARENT_RUN_ID}` = '{parent_id}' and tags.{Tag.ROLE} = '{Role.FOLD}'"
    runs = {run.data.tags.get(Tag.FOLD, ""): run for run in client.search_runs([experiment_id], where)}
    return {int(number): runs[number] for number in sorted(runs) if number.isdecimal()}


def open_fold_run(parent: TrackedRun, number: int, *, name: str) -> TrackedRun:
    """Open the run of a fold, or open it again unless it has finished; it ends with its parent, if not before.

    A server that does not answer is waited for, as a new run's id is the server's.

    Args:
        parent: The run above it.
        number: Of the fold, from 1.
        name: Of a new run.

    Returns:
        The run, which is logged through the parent's outbox.

    Raises:
        TrackingError: The server refuses it, because the parent has been deleted, for example.
    """
    client = TrackingClient()
    failures: list[Exception] = []
    tags = {Tag.PARENT_RUN_ID: parent.id, Tag.ROLE: str(Role.FOLD), Tag.FOLD: str(number)}

    def find_or_create() -> Run:
        # one whose creation succeeded while its answer was lost is found at the next attempt
        found = find_fold_runs(client, parent.id, parent.experiment_id).get(number)
        if found is None:
            found = client.create_run(parent.experiment_id, name=name, tags=tags)
        if not has_finished(found):
            claim_run(client, found.info.run_id)
            client.set_run_status(found.info.run_id, "RUNNING")
        return client.get_run(found.info.run_id)

    def on_failure(error: Exception) -> None:
        if not failures:
            log.warning("%s waits for the tracking server, which does not answer (%s)", name, describe_error(error))
        failures.append(error)

    entity = retry(
        find_or_create,
        is_transient=is_unavailable,
        seconds=math.inf,
        pauses=PAUSES,
        on_retry=on_failure,
    )
    run = TrackedRun(entity.info.run_id, parent.outbox, entity)
    if not has_finished(entity):
        run.is_claimed = True
        parent.fold_run_id = run.id
    return run


def end_fold_run(parent: TrackedRun, run: TrackedRun) -> None:
    """End the run of a fold that has been trained to its end, unless another process has claimed its parent."""
    run.is_superseded = parent.is_superseded
    run.end(RunOutcome.FINISHED, "")
    parent.fold_run_id = None


def has_finished(run: Run) -> bool:
    """Return whether the run of a fold has been trained to its end."""
    return run.data.tags.get(Tag.OUTCOME) == RunOutcome.FINISHED
