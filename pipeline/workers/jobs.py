"""What passes between a driver and the trials that it has trained elsewhere: plain data that pickles."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

from pipeline.config import Config


class Outcome(StrEnum):
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


@dataclass(frozen=True)
class Job:
    """All that a trial needs; settings may be auto, since the device is known where it is trained."""

    number: int
    config: Config
    run: RunRef
    role: Literal["trial", "final", "winner", "step", "latency"]  # the last two are timed
    weights: Path | None = None  # a final leaves its best weights there, and the winner is measured with them
    latency: bool = False  # whether a trial, once trained, is timed as well
    fingerprint: str | None = None  # of the driver's data, where a trial may find other data than its driver

    @property
    def timed(self) -> bool:
        """Whether it is only timed, and logs nothing."""
        return self.role in ("step", "latency")


@dataclass(frozen=True)
class Report:
    """The metrics of a trial's epoch, counted from 1."""

    number: int
    epoch: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Ended:
    """A trial whose process is gone and whose slot is free again."""

    number: int
    outcome: Outcome
    reason: str  # one line; empty for finished
    can_pass: bool  # whether the same trial may well succeed another time
    metrics: Mapping[str, float]  # the figures of the whole trial as far as it came
    output_tail: str  # the end of what it wrote, a traceback or a native stack included
    slot: str  # where it ran
    started_seconds: float | None  # from start() to the first line of the trial's own code; None: it never came there


class Executor(Protocol):
    """Trains jobs elsewhere, as many at a time as it has slots."""

    def free(self) -> int:
        """Count the slots that wait for a job."""
        ...

    def start(self, job: Job, *, minutes: float | None) -> None:
        """Train a job in a free slot; it is stopped when it takes more than `minutes`."""
        ...

    def events(self, timeout: float) -> list[Report | Ended]:
        """What has happened, as soon as something has; empty after `timeout` seconds without."""
        ...

    def prune(self, number: int) -> None:
        """Ask a trial to end after the step it is in; its Ended comes later, as pruned unless it finished before."""
        ...

    def stop(self, number: int) -> None:
        """Ask a trial to end after the step it is in, and make it end if it does not."""
        ...

    def stop_all(self, *, now: bool) -> None:
        """Stop every trial; `now` kills them in the middle of whatever they do."""
        ...


def ending_tags(outcome: Outcome) -> dict[str, str]:
    """The MLflow tags that say what became of a trial; `reason` stands on those that failed."""
    went_as_meant = outcome in {Outcome.FINISHED, Outcome.PRUNED, Outcome.STOPPED}
    return {"trial.state": str(outcome)} | ({} if went_as_meant else {"reason": str(outcome)})
