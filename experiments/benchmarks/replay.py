"""Replay recorded learning curves in place of trials: an executor that does not train, and a run that logs nothing."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipeline.search.executors.base import EpochReport, Executor, TrialJob, TrialResult
from pipeline.tracking.tags import Role, RunRef, TrialOutcome


class RecordedCurves:
    """Validation accuracy by epoch of every configuration of a grid.

    Args:
        rows: A row per epoch, as record.py writes them.
        settings: Names of the columns that identify a configuration.
    """

    def __init__(self, rows: pd.DataFrame, settings: list[str]) -> None:
        self.settings = settings
        self.curves = {key: group["val_accuracy"].tolist() for key, group in rows.groupby(settings)}
        self.parameters = rows.groupby(settings)["parameters"].first().to_dict()
        self.epochs = max(map(len, self.curves.values()))
        self.best_accuracy = max(map(max, self.curves.values()))

    def key(self, params: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the key of a configuration in `curves`."""
        return tuple(params[name] for name in self.settings)


class SearchLog:
    """What a search has spent, in epochs, and what it has found: the best accuracy of each finished training."""

    def __init__(self) -> None:
        self.epochs = 0
        self.finished: list[tuple[int, float]] = []  # epochs spent so far, accuracy

    def add_finished(self, accuracy: float) -> None:
        self.finished.append((self.epochs, accuracy))

    def best_after(self, epochs: int) -> float:
        """Return the best accuracy found within so many epochs, 0 if none."""
        return max((accuracy for spent, accuracy in self.finished if spent <= epochs), default=0.0)

    def epochs_until(self, accuracy: float) -> float:
        """Return the epochs spent until an accuracy was reached, infinity if it never was."""
        return min((spent for spent, found in self.finished if found >= accuracy), default=float("inf"))


class ReplayExecutor(Executor):
    """An executor with one slot whose trials report recorded epochs, one at a time.

    Args:
        recorded: The curves.
        log: Counts the epochs and collects the accuracy of finished trials.
        max_epochs: The budget; see `is_exhausted`.
    """

    def __init__(self, recorded: RecordedCurves, log: SearchLog, *, max_epochs: int) -> None:
        self._recorded, self._log, self._max_epochs = recorded, log, max_epochs
        self._job: TrialJob | None = None
        self._pruned = False

    def describe(self) -> str:
        return "1 at a time, replayed"

    def free(self) -> int:
        return 0 if self._job else 1

    def start(self, job: TrialJob, *, minutes: float | None) -> None:
        self._job, self._pruned = job, False
        curve = list(self._recorded.curves[self._key(job)])
        # A promoted trial goes on from its checkpoint
        self._reported, self._remaining = curve[: job.resume_after], curve[job.resume_after :]

    def events(self, timeout: float) -> list[EpochReport | TrialResult]:
        assert self._job
        if self._pruned or not self._remaining:
            return [self._finish(self._job)]
        self._log.epochs += 1
        self._reported.append(self._remaining.pop(0))
        return [EpochReport(self._job.number, len(self._reported), {"val_accuracy": self._reported[-1]})]

    def prune(self, number: int) -> None:
        self._pruned = True

    def stop(self, number: int) -> None:
        self._pruned = True

    def stop_all(self, *, now: bool) -> None:
        self._pruned = True

    def is_exhausted(self) -> bool:
        """Return whether the budget of epochs has been used."""
        return self._log.epochs >= self._max_epochs

    def _key(self, job: TrialJob) -> tuple[Any, ...]:
        return self._recorded.key(dict(job.config))

    def _finish(self, job: TrialJob) -> TrialResult:
        self._job = None
        outcome = TrialOutcome.PRUNED if self._remaining else TrialOutcome.FINISHED
        if outcome is TrialOutcome.FINISHED:
            self._log.add_finished(max(self._reported))
        metrics = {
            "best_val_accuracy": max(self._reported),
            "best_val_loss": 0.0,
            "parameters": float(self._recorded.parameters[self._key(job)]),
            "epochs": float(len(self._reported)),
            "seconds": float(len(self._reported)),
        }
        return TrialResult(
            job.number,
            outcome,
            reason="",
            retryable=False,
            metrics=metrics,
            output_tail="",
            slot="replay",
            started_seconds=None,
        )


class NullStudyRun:
    """Stand in for a study's run in MLflow and log nothing."""

    def start_child(self, name: str, *, role: Role, tags: Mapping[str, str], parent: str | None = None) -> RunRef:
        return RunRef("", name)

    def present_child(self, run_id: str, **presentation: object) -> None:
        pass

    def end_trial(self, run_id: str, outcome: TrialOutcome, *, reason: str, output_tail: str) -> None:
        pass
