"""Successive halving whose trials go on: one that was stopped at a rung continues once it is among the best of it.

A trial that continues another one is a trial of its own in Optuna, as a finished one cannot be changed. It begins with
the values of the other, and the two count as one.
"""

import math
from binascii import crc32
from collections.abc import Container, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, TrialState

from pipeline.runtime.files import cache_folder
from pipeline.search.attributes import CONTINUES, OUTCOME, ROOT, TRAINABLE
from pipeline.tracking.tags import TrialOutcome

# Optuna's system attributes of a trial: its value at each rung that it has reached
RUNG_PREFIX = "completed_rung_"


class RungPruner(BasePruner):
    """Optuna's successive halving, in one bracket (ASHA) or in several with different first rungs (Hyperband).

    Trials are shared out among the brackets as in Optuna's HyperbandPruner: the more halving a bracket does, the more.

    Args:
        first: Number of epochs of the first rung.
        factor: Each rung has so many times the epochs of the one before, for one trial in so many.
        epochs: Of the longest trial; its last one is no rung.
        brackets: Whether there are several brackets.
    """

    def __init__(self, *, first: int, factor: int, epochs: int, brackets: bool) -> None:
        self.factor = factor
        rungs = max(0, math.ceil(math.log(epochs / first, factor) - 1e-9))
        self.rungs = [first * factor**rung for rung in range(rungs)]
        self._brackets = [
            SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor, min_early_stopping_rate=rate)
            for rate in range(rungs + 1 if brackets else 1)
        ]

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether a trial is not among the best of the rung that it has just reached."""
        if trial.last_step not in self.rungs:
            return False
        bracket = self._bracket(study, trial)
        return self._brackets[bracket].prune(_Peers(study, self._peers(study, bracket)), trial)  # type: ignore[arg-type]

    def promotable(self, study: optuna.Study) -> FrozenTrial | None:
        """Return the stopped trial that has come furthest of those that are among the best of their rung by now."""
        trials = study.get_trials(deepcopy=False)
        continued = {trial.user_attrs.get(CONTINUES) for trial in trials}
        stopped = [
            trial
            for trial in trials
            if trial.state == TrialState.PRUNED
            and trial.number not in continued
            and trial.last_step in self.rungs
            and not trial.constraints.get(TRAINABLE, 0.0) > 0
            # from its rung it would diverge again
            and trial.user_attrs.get(OUTCOME) != str(TrialOutcome.DIVERGED)
            and rung_values(trial)
        ]
        for trial in sorted(stopped, key=lambda trial: -(trial.last_step or 0)):
            key = _rung_key(trial)
            peers = self._peers(study, self._bracket(study, trial))
            values = [peer.system_attrs[key] for peer in peers if key in peer.system_attrs]
            values.sort(reverse=study.direction == optuna.study.StudyDirection.MAXIMIZE)
            if trial.system_attrs[key] in values[: len(values) // self.factor]:
                return trial
        return None

    def _peers(self, study: optuna.Study, bracket: int) -> list[FrozenTrial]:
        """Return the trials of a bracket, without those that others continue or try again."""
        trials = study.get_trials(deepcopy=False)
        left_out = continued_trials(trials)
        return [
            trial
            for trial in trials
            if trial.state != TrialState.FAIL
            and trial.number not in left_out
            and self._bracket(study, trial) == bracket
        ]

    def _bracket(self, study: optuna.Study, trial: FrozenTrial) -> int:
        """Return the bracket of a trial, which is that of the one that it continues."""
        if len(self._brackets) == 1:
            return 0
        most = len(self._brackets) - 1
        budgets = [math.ceil((most + 1) * self.factor ** (most - rate) / (most - rate + 1)) for rate in range(most + 1)]
        place = crc32(f"{study.study_name}_{root(trial)}".encode()) % sum(budgets)
        return next(rate for rate in range(most + 1) if place < sum(budgets[: rate + 1]))


class _Peers:
    """What Optuna's pruner reads of a study, with some of its trials only."""

    def __init__(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        self.direction, self._storage = study.direction, study._storage
        self._trials = trials

    def get_trials(self, *, deepcopy: bool, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return [trial for trial in self._trials if states is None or trial.state in states]


def checkpoints_folder(study: str) -> Path:
    """Return the folder of the checkpoints of a study's trials on this machine."""
    # A digest, as a study's own name may be `../..`
    return cache_folder("rungs", blake2b(study.encode(), digest_size=16).hexdigest())


def root(trial: optuna.Trial | FrozenTrial) -> int:
    """Return the number of the first trial of those that continue each other, or try its configuration again."""
    first = trial.user_attrs.get(ROOT)
    return trial.number if first is None else int(first)


def continued_trials(trials: Sequence[FrozenTrial]) -> set[int]:
    """Return the numbers of the trials that others continue, unless these have failed."""
    return {
        trial.user_attrs[CONTINUES]
        for trial in trials
        if CONTINUES in trial.user_attrs and trial.state != TrialState.FAIL
    }


def rung_values(trial: FrozenTrial) -> dict[str, Any]:
    """Return Optuna's system attributes of the rungs that a trial has reached."""
    return {key: value for key, value in trial.system_attrs.items() if key.startswith(RUNG_PREFIX)}


def _rung_key(trial: FrozenTrial) -> str:
    """Return the system attribute of the last rung that a trial has reached."""
    return max(rung_values(trial), key=lambda key: int(key.removeprefix(RUNG_PREFIX)))
