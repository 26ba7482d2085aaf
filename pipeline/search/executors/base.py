"""The interface between a driver and its executor: trial jobs, epoch reports, trial results, and the retry policy."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pipeline.config.training import TrainingConfig
from pipeline.tracking.tags import RunRef, TrialOutcome


# The dataclasses are pickled on their way between processes, so they hold plain data only.
@dataclass(frozen=True)
class TrialJob:
    """What a trial is to train; settings may be `auto`, as the device is known only where it is trained."""

    number: int
    config: TrainingConfig
    run: RunRef
    # `step` and `latency` jobs are only timed
    role: Literal["trial", "final", "ensemble", "winner", "step", "latency"]
    # file to which a final writes its best weights, and with which the winner or an ensemble is evaluated
    weights: Path | None = None
    # configurations of an ensemble's networks, the winner's first; the file then holds the weights of one after another
    members: tuple[TrainingConfig, ...] = ()
    # by which an ensemble is compared with the winner
    metric: str = "val_accuracy"
    # whether to measure the latency after the training
    latency: bool = False
    # folder for its checkpoints after the epochs of `rungs`
    checkpoints: Path | None = None
    rungs: tuple[int, ...] = ()
    # whether it goes on from the last of them that is there
    resume: bool = False
    # train only if a prediction takes no longer
    max_latency_ms: float | None = None
    # of its GPU; None: as much as its slot has
    max_memory_mb: int | None = None
    # of the driver's data, to compare with the data on a trial's node
    fingerprint: str | None = None

    @property
    def timed(self) -> bool:
        """Return whether the job is only timed and logs nothing."""
        return self.role in ("step", "latency")


@dataclass(frozen=True)
class EpochReport:
    """The metrics of one epoch of a trial, counted from 1."""

    number: int
    epoch: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended; its process has ended and its slot is free again."""

    number: int
    outcome: TrialOutcome
    reason: str  # one line; empty if finished
    retryable: bool  # whether the same trial may succeed another time
    metrics: Mapping[str, float]  # of the whole trial, as far as it came
    output_tail: str  # the end of its output, including a traceback or a native stack
    slot: str  # name of the slot in which it ran
    started_seconds: float | None  # from start() to the first line of the trial's own code; None if it never got there


class Executor(ABC):
    """Runs trials elsewhere, as many at a time as it has slots; a context manager, open while trials run."""

    def __enter__(self) -> Self:
        """Get ready for jobs."""
        return self

    def __exit__(self, *error: object) -> None:
        """Kill the trials that still run and free what the executor holds."""
        self.stop_all(now=True)

    @abstractmethod
    def describe(self) -> str:
        """Return how many trials run at a time and where, as of now, for the terminal."""

    def restore(self, *, used_gpus: bool, on_first_gpu: Callable[[], None]) -> None:  # noqa: B027
        """Continue as an earlier driver of the same search did; called before the context is entered.

        The default keeps nothing from one driver to the next.

        Args:
            used_gpus: whether the trials of an earlier driver had GPUs.
            on_first_gpu: called once when GPUs are first there, if they have not been before.
        """

    @abstractmethod
    def free(self) -> int:
        """Return the number of slots that wait for a job."""

    @abstractmethod
    def start(self, job: TrialJob, *, minutes: float | None) -> None:
        """Start a job in a free slot; it is stopped when it takes more than `minutes`."""

    @abstractmethod
    def events(self, timeout: float) -> list[EpochReport | TrialResult]:
        """Return what has happened, as soon as something has; an empty list after `timeout` seconds."""

    @abstractmethod
    def prune(self, number: int) -> None:
        """Ask a trial to end after its current step; its result is PRUNED unless it finished before."""

    @abstractmethod
    def stop(self, number: int) -> None:
        """Ask a trial to end after its current step, and kill it if it does not."""

    @abstractmethod
    def stop_all(self, *, now: bool) -> None:
        """Stop every trial; `now` kills them at once, whatever they are doing."""


# Tries of a training whose process died: the first and two retries
MAX_ATTEMPTS = 3
# Nodes that one configuration may lose. A spot machine that is taken away is no fault of the training on it, but losing
# so many hardly is a coincidence.
MAX_NODE_LOSSES = 5


def should_retry(result: TrialResult, *, attempt: int, node_losses: int) -> bool:
    """Return whether a training is worth another try.

    Args:
        result: of its last try.
        attempt: the number of that try, from 1; tries that lost their node do not count.
        node_losses: the number of nodes it had lost before.
    """
    if result.outcome is TrialOutcome.LOST:
        return node_losses + 1 < MAX_NODE_LOSSES
    return result.retryable and attempt < MAX_ATTEMPTS
