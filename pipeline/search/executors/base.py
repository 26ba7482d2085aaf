"""What passes between a driver and the trials that it has trained elsewhere: plain data that pickles."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pipeline.config.training import TrainingConfig
from pipeline.tracking.tags import RunRef, TrialOutcome


@dataclass(frozen=True)
class TrialJob:
    """All that a trial needs; settings may be auto, since the device is known where it is trained."""

    number: int
    config: TrainingConfig
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
class EpochReport:
    """The metrics of a trial's epoch, counted from 1."""

    number: int
    epoch: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrialResult:
    """A trial whose process is gone and whose slot is free again."""

    number: int
    outcome: TrialOutcome
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

    def start(self, job: TrialJob, *, minutes: float | None) -> None:
        """Train a job in a free slot; it is stopped when it takes more than `minutes`."""
        ...

    def events(self, timeout: float) -> list[EpochReport | TrialResult]:
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


MAX_ATTEMPTS = 3  # where the process died: once and two retries
MAX_NODE_LOSSES = 5  # of a node: a spot machine taken away is no fault of the training on it, but so many hardly are


def should_retry(ended: TrialResult, *, attempt: int, losses: int) -> bool:
    """Whether a training is worth another try.

    Args:
        ended: how its last try went.
        attempt: which try that was, from 1; those that lost their node do not count.
        losses: how many nodes it had lost before.
    """
    if ended.outcome is TrialOutcome.LOST:
        return losses + 1 < MAX_NODE_LOSSES
    return ended.can_pass and attempt < MAX_ATTEMPTS
