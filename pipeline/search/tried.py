"""Which configurations have been tried: none of them is trained twice."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from pipeline.search.attributes import ABANDONED, DRIVER, DUPLICATE_OF, IMPORTED_FROM
from pipeline.search.feasible_space import FeasibleSpace
from pipeline.search.promotion import continued_trials
from pipeline.search.space import SearchSpec


class TriedConfigurations:
    """Recognizes configurations that are not to be trained again.

    Args:
        search: what is searched.
        space: its configurations.
        live_drivers: returns the ids of the live drivers that share the study.
    """

    def __init__(self, search: SearchSpec, space: FeasibleSpace, *, live_drivers: Callable[[], frozenset[str]]) -> None:
        self._search, self._space, self._live_drivers = search, space, live_drivers
        # Keys of configurations that failed for good; the next driver tries them again
        self._abandoned: set[str] = set()

    def abandon(self, params: Mapping[str, Any]) -> None:
        """Take note that a configuration, as it was drawn, has failed for good."""
        self._abandoned.add(self._space.key(self._search.snap(params)))

    def keys(self, trials: Iterable[FrozenTrial]) -> set[str]:
        """Return the keys of the configurations that are not to be trained again."""
        keys = ((trial, self._space.key(self._search.snap(trial.params))) for trial in trials)
        return {key for trial, key in keys if self._is_final(trial, key)}

    def find(self, params: Mapping[str, Any], trials: list[FrozenTrial], *, before: int) -> FrozenTrial | None:
        """Return the trial that has, or is about to have, the result of a configuration, or None.

        Args:
            params: the settings that were drawn.
            trials: all of the study.
            before: the number of the trial that has drawn them.
        """
        continued = continued_trials(trials)
        # what was imported is older than all that was drawn here, such as what the search's file enqueued
        older = (
            old
            for old in trials
            if (old.number < before or IMPORTED_FROM in old.user_attrs) and old.number not in continued
        )
        return next((old for old in older if self._is_same(old, params)), None)

    def _is_same(self, old: FrozenTrial, params: Mapping[str, Any]) -> bool:
        key = self._space.key(params)
        if DUPLICATE_OF in old.user_attrs or self._space.key(self._search.snap(old.params)) != key:
            return False
        return self._is_final(old, key)

    def _is_final(self, trial: FrozenTrial, key: str) -> bool:
        """Return whether a trial's configuration is not to be trained again: it neither waits nor may be retried."""
        abandoned = key in self._abandoned or (
            ABANDONED in trial.user_attrs and trial.user_attrs[DRIVER] in self._live_drivers()
        )
        return trial.state != TrialState.WAITING and (trial.state != TrialState.FAIL or abandoned)
