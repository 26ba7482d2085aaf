"""Replay recorded learning curves in place of trials: an executor that does not train, and a run that logs nothing."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.search.executors.base import EpochReport, Executor, TrialJob, TrialResult
from pipeline.search.space import SearchSpec
from pipeline.tracking.study_run import StudyRun
from pipeline.tracking.tags import Role, RunRef, TrialOutcome


class RecordedCurves:
    """Validation accuracy by epoch of every configuration of a search's space.

    Args:
        search: The search.
        file: A row per epoch, as record.py writes them.

    Raises:
        KeyError: The curve of a configuration is missing.
    """

    def __init__(self, search: SearchSpec, file: Path) -> None:
        self.search = search
        settings = list(search.space)
        # `none` is a value, and an empty cell a setting that was not drawn
        rows = pd.read_csv(file, keep_default_na=False, na_values={name: [""] for name in settings})
        groups = rows.groupby(settings, dropna=False, sort=False)
        curves = {_key(cells): group for cells, group in groups}
        self.curves = {key: curves[key]["val_accuracy"].tolist() for key in map(self.key, search.configurations())}
        self.parameters = {key: int(curves[key]["parameters"].iloc[0]) for key in self.curves}
        self.epochs = max(map(len, self.curves.values()))
        self.best_accuracy = max(map(max, self.curves.values()))

    def key(self, params: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the key of a configuration, as it is drawn, in `curves`."""
        return tuple(params.get(name) for name in self.search.space)


def _key(cells: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the key of a row's settings."""
    return tuple(None if pd.isna(cell) else cell for cell in cells)


class SearchLog:
    """What a search has spent, in epochs, and what it has found: the best accuracy of each finished training.

    Args:
        goal: An accuracy that ends the search once it is found.
        least: But not before so many epochs are spent.
    """

    def __init__(self, goal: float = math.inf, *, least: int = 0) -> None:
        self.goal, self.least = goal, least
        self.epochs = 0
        self.finished: list[tuple[int, float]] = []  # epochs spent so far, accuracy

    def add_finished(self, accuracy: float) -> None:
        self.finished.append((self.epochs, accuracy))

    def is_done(self, max_epochs: int) -> bool:
        """Return whether the epochs are spent, or the goal is reached."""
        known = self.epochs >= self.least and self.epochs_until(self.goal) < math.inf
        return known or self.epochs >= max_epochs

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
        self._reported: list[float] = []
        self._remaining: list[float] = []
        # Epochs of the checkpoints, by the folder that they would have
        self._saved: dict[Path | None, int] = {}

    def describe(self) -> str:
        return "1 at a time, replayed"

    def free(self) -> int:
        return 0 if self._job else 1

    def start(self, job: TrialJob, *, minutes: float | None) -> None:
        self._job, self._pruned = job, False
        self._reported, self._remaining = [], list(self._recorded.curves[self._key(job)])
        # A promoted trial goes on from its checkpoint
        self._resumed_after = self._saved.get(job.checkpoints, 0) if job.resume else 0

    def events(self, timeout: float) -> list[EpochReport | TrialResult]:
        assert self._job
        if self._pruned or not self._remaining:
            return [self._finish(self._job)]
        self._reported.append(self._remaining.pop(0))
        epoch = len(self._reported)
        if epoch > self._resumed_after:
            self._log.epochs += 1
        if epoch in self._job.rungs:
            self._saved[self._job.checkpoints] = epoch
        return [EpochReport(self._job.number, epoch, {"val_accuracy": self._reported[-1]})]

    def prune(self, number: int) -> None:
        self._pruned = True

    def stop(self, number: int) -> None:
        self._pruned = True

    def stop_all(self, *, now: bool) -> None:
        self._pruned = True

    def is_exhausted(self) -> bool:
        """Return whether the search is to end."""
        return self._log.is_done(self._max_epochs)

    def _key(self, job: TrialJob) -> tuple[Any, ...]:
        return self._recorded.key(self._recorded.search.drawn(dict(job.config)))

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


class NullStudyRun(StudyRun):
    """Stand in for a study's run in MLflow and log nothing."""

    def __init__(self) -> None: ...

    def start_child(self, name: str, *, role: Role, tags: Mapping[str, str], parent: str | None = None) -> RunRef:
        return RunRef("", name)

    def present_child(self, run_id: str, **presentation: object) -> None:
        pass

    def end_trial(self, run_id: str, outcome: TrialOutcome, *, reason: str, output_tail: str) -> None:
        pass
