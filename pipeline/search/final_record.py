"""The record of a study's finals: which configurations were retrained, with which seeds, and what came of it."""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from pipeline.config.effective import effective
from pipeline.config.monitor import DIRECTIONS
from pipeline.config.training import SEEDS
from pipeline.runtime.code_version import training_code_digest
from pipeline.search.attributes import FINAL, WINNER
from pipeline.search.study import Study


@dataclass
class Finalist:
    """A configuration that is retrained, as the study keeps it."""

    trial: int  # number of the trial that made it a finalist
    params: dict[str, Any]
    digest: str  # of all that decides its results, but for the seed
    run_id: str  # of the run above those of its trainings
    values: dict[str, float] = field(default_factory=dict)  # by seed, as text since JSON has no other keys
    runs: dict[str, str] = field(default_factory=dict)  # ids of the trainings' runs, by seed
    refits: dict[str, str] = field(default_factory=dict)  # the same of those on training and validation images
    is_closed: bool = False  # whether its run has ended with all values so far

    def standing(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Return what the study keeps of the finalist beside its winner: the mean of its values, for example."""
        values = list(self.known(seeds).values())
        return {
            "trial": self.trial,
            "params": self.params,
            "run_id": self.run_id,
            "seeds": len(values),
            "mean": mean(values),
            "sd": stdev(values) if len(values) > 1 else None,
        }

    def known(self, seeds: Sequence[int]) -> dict[str, float]:
        """Return the values of the trainings with these seeds that have finished, by seed."""
        return {str(seed): self.values[str(seed)] for seed in seeds if str(seed) in self.values}


class FinalRecord:
    """The configurations of a study that were retrained so far, kept in the study at each change.

    A training counts as long as its configuration, seed, data, metric and code are the same. Records of other data or
    another code stay, but are not returned.

    Args:
        study: The study.
        metric: What the trainings are compared by.
        data_fingerprint: Of the data.
    """

    def __init__(self, study: Study, *, metric: str, data_fingerprint: str) -> None:
        self._study, self._search = study, study.search
        self._best: Any = max if DIRECTIONS[metric] == "maximize" else min
        self._world = [data_fingerprint, metric, training_code_digest()]
        self._all = [Finalist(**kept) for kept in study.get_attr(FINAL) or []]
        first, number = self._search.base.seed, self._search.settings.final_seeds
        self.seeds = [(first + offset) % SEEDS for offset in range(number)]

    def digest(self, params: dict[str, Any]) -> str:
        """Return hexadecimal digits of all that decides the result of a configuration, but for the seed."""
        config = effective(self._search.config(params)).model_dump(mode="json", exclude={"dataset", "seed"})
        return hashlib.sha256(json.dumps([config, *self._world], sort_keys=True).encode()).hexdigest()[:20]

    def find(self, params: dict[str, Any]) -> Finalist | None:
        """Return the finalist of a configuration, or None if it has not been one."""
        digest = self.digest(params)
        return next((finalist for finalist in self._all if finalist.digest == digest), None)

    def is_outdated(self, finalists: Collection[Finalist]) -> bool:
        """Return whether configurations of these were trained before, by other data or another code."""
        return any(
            old.params == new.params and old.digest != new.digest
            for old in self._all
            for new in finalists
            if old.values
        )

    def add(self, finalist: Finalist) -> None:
        """Add a finalist; it is kept at the next `keep`."""
        self._all.append(finalist)

    def keep(self) -> None:
        """Keep in the study what has been trained."""
        self._study.set_attr(FINAL, [vars(finalist) for finalist in self._all])

    def compared(self, finalists: Collection[Finalist]) -> list[Finalist]:
        """Return the finalists with a value, and those of earlier finals that have one for each seed."""
        earlier = [
            finalist
            for finalist in self._all
            if len(finalist.known(self.seeds)) == len(self.seeds) and finalist.digest == self.digest(finalist.params)
        ]
        return [one for one in self._all if one in earlier or (one in finalists and one.known(self.seeds))]

    def n_missing(self) -> int:
        """Return how many trainings a final of the study as it is now, or will be with more trials, still takes."""
        settings = self._search.settings
        best = [self.find(self._search.snap(trial.params)) for trial in self._study.ranked()[: settings.final_top]]
        known = sum(len(finalist.known(self.seeds)) for finalist in best if finalist)
        return min(settings.final_top, settings.trials) * len(self.seeds) - known

    def needs_refit(self) -> bool:
        """Return whether a winner is still to be trained once more, on training and validation images."""
        winner = self._study.get_attr(WINNER) or {}
        return self._search.refit and winner.get("model") != "refit"

    def winning(self, compared: Collection[Finalist]) -> Finalist:
        """Return the finalist with the best mean."""
        return self._best(compared, key=lambda finalist: mean(finalist.known(self.seeds).values()))

    def best_seed(self, finalist: Finalist) -> int:
        """Return the seed of a finalist's best training."""
        values = finalist.known(self.seeds)
        return int(self._best(values, key=lambda seed: values[seed]))

    def is_better(self, first: float, second: float) -> bool:
        """Return whether the first of two values is the better one."""
        return first != second and bool(self._best(first, second) == first)

    def sorted_standings(self, finalists: Collection[Finalist]) -> list[dict[str, Any]]:
        """Return what the study keeps of the finalists that are compared, the best first."""
        standings = [finalist.standing(self.seeds) for finalist in self.compared(finalists)]
        return sorted(standings, key=lambda one: one["mean"], reverse=self._best is max)

    def question(self, digests: Collection[str]) -> list[Any]:
        """Return what decides what is handed over: a final of the same finalists and seeds needs no repetition."""
        return [sorted(digests), self.seeds, self._search.refit, self._search.settings.ensemble]


def mean_and_sd(metric: str, standing: dict[str, Any]) -> dict[str, float]:
    """Return the mean of a finalist's values and, of two or more, their standard deviation."""
    figures = {f"{metric}_mean": standing["mean"]}
    return figures if standing["sd"] is None else figures | {f"{metric}_sd": standing["sd"]}
