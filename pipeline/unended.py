"""What became of a trial on Ray whose task did not return: its node was lost, memory ran out, or something else."""

from itertools import dropwhile
from typing import Any

from pipeline.printable import one_line
from pipeline.workers.jobs import Ended, Job, Outcome

NODE_LOST = ("NodeDiedError", "WorkerCrashedError", "LocalRayletDiedError", "ObjectLostError", "RayActorError")
HEADING = "Failed to set up runtime environment."  # the reason follows it
CHARACTERS = 500


def unended(job: Job, error: Exception, errors: Any) -> Ended:
    """The end of a trial of which nothing is known but what Ray raised for it.

    Args:
        errors: Ray's module of exceptions.
    """
    kind = type(error).__name__
    told = f"{kind}: {telling_line(error)}"
    if isinstance(error, errors.TaskCancelledError):
        return without_words(job, Outcome.STOPPED, "by the driver")
    if isinstance(error, tuple(getattr(errors, name) for name in NODE_LOST)):
        return without_words(job, Outcome.LOST, f"its node was lost: {kind}")
    if isinstance(error, errors.OutOfMemoryError):
        return without_words(job, Outcome.OOM, told)
    own = isinstance(error, errors.RayTaskError)  # what the task itself raised, and would again
    return without_words(job, Outcome.RAISED, telling_line(error) if own else told, tail=str(error), can_pass=not own)


def without_words(job: Job, outcome: Outcome, reason: str, *, tail: str = "", can_pass: bool = False) -> Ended:
    """An end with no figures; what is lost may succeed another time."""
    return Ended(job.number, outcome, reason, can_pass or outcome is Outcome.LOST, {}, tail, "Ray", None)


def telling_line(error: BaseException) -> str:
    """The exception's line of the last traceback that an error quotes, else the first line after its heading."""
    lines = [line for line in str(error).splitlines() if line.strip() and line != HEADING]
    frames = [index for index, line in enumerate(lines) if line.startswith("  File ")]
    said = dropwhile(lambda line: line.startswith(" "), lines[max(frames, default=0) :])
    return one_line(next(said, ""), most=CHARACTERS)
