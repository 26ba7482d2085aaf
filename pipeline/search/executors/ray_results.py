"""Results of trials of which nothing is known but the error that Ray raised for them."""

from itertools import dropwhile
from typing import Any

from pipeline.runtime.text import one_line
from pipeline.search.executors.base import TrialJob, TrialResult
from pipeline.tracking.tags import TrialOutcome

# Ray's errors that mean the loss of a node
NODE_LOST = ("NodeDiedError", "WorkerCrashedError", "LocalRayletDiedError", "ObjectLostError", "RayActorError")
# First line of some of Ray's errors; the reason follows it
ENVIRONMENT_SETUP_FAILED = "Failed to set up runtime environment."
REASON_CHARACTERS = 500


def result_from_ray_error(job: TrialJob, error: Exception, errors: Any) -> TrialResult:
    """Return the result of a trial of which nothing is known but the error that Ray raised for it.

    Args:
        job: of the trial.
        error: what Ray raised.
        errors: Ray's module of exceptions.
    """
    kind = type(error).__name__
    reason = f"{kind}: {summary_line(error)}"
    if isinstance(error, errors.TaskCancelledError):
        return failed_result(job, TrialOutcome.STOPPED, "by the driver")
    if isinstance(error, tuple(getattr(errors, name) for name in NODE_LOST)):
        return failed_result(job, TrialOutcome.LOST, f"its node was lost: {kind}")
    if isinstance(error, errors.OutOfMemoryError):
        return failed_result(job, TrialOutcome.OOM, reason)
    if isinstance(error, errors.RayTaskError):
        # raised by the task itself, which would raise it again
        return failed_result(job, TrialOutcome.RAISED, summary_line(error), output_tail=str(error))
    return failed_result(job, TrialOutcome.RAISED, reason, output_tail=str(error), retryable=True)


def failed_result(
    job: TrialJob, outcome: TrialOutcome, reason: str, *, output_tail: str = "", retryable: bool = False
) -> TrialResult:
    """Return a result without metrics; a lost trial is always retryable."""
    return TrialResult(
        job.number,
        outcome,
        reason,
        retryable=retryable or outcome is TrialOutcome.LOST,
        metrics={},
        output_tail=output_tail,
        slot="Ray",
        started_seconds=None,
    )


def summary_line(error: BaseException) -> str:
    """Return the exception line of the last traceback that an error quotes, else the first line of its message."""
    lines = [line for line in str(error).splitlines() if line.strip() and line != ENVIRONMENT_SETUP_FAILED]
    frames = [index for index, line in enumerate(lines) if line.startswith("  File ")]
    after_traceback = dropwhile(lambda line: line.startswith(" "), lines[max(frames, default=0) :])
    return one_line(next(after_traceback, ""), most=REASON_CHARACTERS)
