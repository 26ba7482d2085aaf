"""Trials that do not train: an executor that plays back recorded curves, and a run that forgets what it is told."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipeline.search.executors.base import EpochReport, Executor, TrialJob, TrialResult
from pipeline.tracking.tags import Role, RunRef, TrialOutcome


class Recorded:
    """Validation accuracy by epoch of every configuration of a grid.

    Args:
        rows: an epoch each, as record.py writes them.
    """

    def __init__(self, rows: pd.DataFrame, settings: list[str]) -> None:
        self.settings = settings
        self.curves = {key: group["val_accuracy"].tolist() for key, group in rows.groupby(settings)}
        self.parameters = rows.groupby(settings)["parameters"].first().to_dict()
        self.epochs = max(map(len, self.curves.values()))
        self.best = max(map(max, self.curves.values()))

    def key(self, params: Mapping[str, Any]) -> tuple[int, ...]:
        """A configuration's key in `curves`."""
        return tuple(int(params[name]) for name in self.settings)


class Log:
    """What a way of searching has spent and what it has in hand: a finished training's best accuracy."""

    def __init__(self) -> None:
        self.epochs = 0
        self.found: list[tuple[int, float]] = []  # epochs spent, accuracy

    def finish(self, accuracy: float) -> None:
        self.found.append((self.epochs, accuracy))

    def best_after(self, epochs: int) -> float:
        """The best in hand when so many epochs had been spent, 0 if none."""
        return max((accuracy for spent, accuracy in self.found if spent <= epochs), default=0.0)

    def epochs_until(self, accuracy: float) -> float:
        """Epochs spent when so much was first in hand; infinite if it never was."""
        return min((spent for spent, value in self.found if value >= accuracy), default=float("inf"))


class Played(Executor):
    """An executor with one slot whose trials report recorded epochs, one at a time."""

    def __init__(self, recorded: Recorded, log: Log, *, most: int) -> None:
        self._recorded, self._log, self._most = recorded, log, most
        self._job: TrialJob | None = None
        self._pruned = False

    def describe(self) -> str:
        return "1 at a time, played back"

    def free(self) -> int:
        return 0 if self._job else 1

    def start(self, job: TrialJob, *, minutes: float | None) -> None:
        self._job, self._pruned, self._curve = job, False, []
        self._left = list(self._recorded.curves[self._key(job)])

    def events(self, timeout: float) -> list[EpochReport | TrialResult]:
        assert self._job
        if self._pruned or not self._left:
            return [self._end(self._job)]
        self._log.epochs += 1
        self._curve.append(self._left.pop(0))
        return [EpochReport(self._job.number, len(self._curve), {"val_accuracy": self._curve[-1]})]

    def prune(self, number: int) -> None:
        self._pruned = True

    def stop(self, number: int) -> None:
        self._pruned = True

    def stop_all(self, *, now: bool) -> None:
        self._pruned = True

    def spent(self) -> bool:
        """Whether as many epochs have been played as there are to be."""
        return self._log.epochs >= self._most

    def _key(self, job: TrialJob) -> tuple[int, ...]:
        return self._recorded.key(dict(job.config))

    def _end(self, job: TrialJob) -> TrialResult:
        self._job = None
        outcome = TrialOutcome.PRUNED if self._left else TrialOutcome.FINISHED
        if outcome is TrialOutcome.FINISHED:
            self._log.finish(max(self._curve))
        figures = {
            "best_val_accuracy": max(self._curve),
            "best_val_loss": 0.0,
            "parameters": float(self._recorded.parameters[self._key(job)]),
            "epochs": float(len(self._curve)),
            "seconds": float(len(self._curve)),
        }
        return TrialResult(job.number, outcome, "", False, figures, "", "played back", None)


class Forgetful:
    """Stands in for the run of a study in MLflow."""

    def start_child(self, name: str, *, role: Role, tags: Mapping[str, str], parent: str | None = None) -> RunRef:
        return RunRef("", name)

    def end_trial(self, run_id: str, outcome: TrialOutcome, *, reason: str, output_tail: str) -> None:
        pass
