"""Names and values of the tags that this program writes to MLflow."""

from dataclasses import dataclass
from enum import StrEnum


class TrialOutcome(StrEnum):
    """What became of a trial."""

    FINISHED = "finished"
    PRUNED = "pruned"  # the driver asked
    STOPPED = "stopped"  # the driver, or a SIGTERM
    TIMEOUT = "timeout"  # took more minutes than it was given
    DIVERGED = "diverged"  # its loss was not finite any more
    OOM = "oom"  # wanted more memory than there was, on the GPU or the host
    RAISED = "raised"  # a Python exception
    CRASHED = "crashed"  # the process ended without a word
    LOST = "node lost"  # the machine that it ran on, or the way there


@dataclass(frozen=True)
class RunRef:
    """An MLflow run that is there already."""

    tracking_uri: str
    run_id: str


def ending_tags(outcome: TrialOutcome) -> dict[str, str]:
    """The MLflow tags that say what became of a trial; `reason` stands on those that failed."""
    went_as_meant = outcome in {TrialOutcome.FINISHED, TrialOutcome.PRUNED, TrialOutcome.STOPPED}
    return {"trial.state": str(outcome)} | ({} if went_as_meant else {"reason": str(outcome)})
