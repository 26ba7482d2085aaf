"""Optuna's cache of a database, for a process that knows when trials have changed: it reads those alone again."""

from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage, _CachedStorage
from optuna.trial import FrozenTrial, TrialState


class KnownTrials(_CachedStorage):
    """A storage whose trials are read once, and again where this process changed them, or after `refresh`.

    Optuna's own cache reads all unfinished trials at every look: 0.2 to 0.3 s of CPU a trial on sqlite.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._changed: set[int] = set()  # ids of trials
        self._stale = True

    @property
    def backend(self) -> RDBStorage:
        return self._backend

    def refresh(self) -> None:
        """Read at the next look what other processes may have written."""
        self._stale = True

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        return self._mark(super().create_new_trial(study_id, template_trial))

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        super().set_trial_param(self._mark(trial_id), param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        return super().set_trial_state_values(self._mark(trial_id), state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        super().set_trial_intermediate_value(self._mark(trial_id), step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_user_attr(self._mark(trial_id), key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_system_attr(self._mark(trial_id), key, value)

    def _mark(self, trial_id: int) -> int:
        self._changed.add(trial_id)
        return trial_id

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        if self._stale or study_id not in self._studies:
            self._stale = False
            self._changed.clear()
            super()._read_trials_from_remote_storage(study_id)
        elif self._changed:
            with self._lock:
                changed, self._changed = self._changed, set()
                last = max(self._trial_id_to_study_id_and_number)
                found = self._backend._get_trials(
                    study_id, states=None, included_trial_ids=changed, trial_id_greater_than=last
                )
                self._add_trials_to_cache(study_id, found)
                study = self._studies[study_id]
                study.unfinished_trial_ids |= {trial._trial_id for trial in found if not trial.state.is_finished()}
