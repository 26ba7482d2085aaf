"""The storage of a study: Optuna's, with a cache for a process that writes alone, and retries during an outage."""

import logging
import time
from collections.abc import Callable, Container, Sequence
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import InMemoryStorage, RDBStorage, _CachedStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, PendingRollbackError, ProgrammingError

from pipeline.runtime.errors import UsageError
from pipeline.runtime.retry import retry
from pipeline.runtime.shell import install_extra_command
from pipeline.runtime.urls import mask_password, storage_error

# For how long, and how often, a database server that is unavailable is asked again: a restart, a fail-over
PATIENCE_SECONDS = 300.0
PAUSE_SECONDS = 1.0
# What SQLAlchemy raises then; the last for what is asked after a transaction broke
UNAVAILABLE = (InterfaceError, OperationalError, PendingRollbackError)
# Tries to open a storage whose tables other processes may be creating at this moment
MAX_OPENINGS = 10

T = TypeVar("T")


def open_storage(url: str | None) -> "SingleWriterCache | InMemoryStorage":
    """Open the storage at a URL, or one in memory for None.

    Raises:
        UsageError: it cannot be opened; the message holds no password.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url is None:
        return InMemoryStorage()
    try:
        return SingleWriterCache(_open_database(url))
    except ImportError:
        raise UsageError(
            f"a storage such as {mask_password(url)} needs its driver: "
            f"{install_extra_command('postgres')} brings PostgreSQL's"
        ) from None
    except Exception as error:  # noqa: BLE001 - each kind of database raises its own
        raise storage_error("the study's storage", url, error) from None


def _open_database(url: str) -> RDBStorage:
    if make_url(url).get_backend_name() == "sqlite":
        return RDBStorage(url)
    for _ in range(MAX_OPENINGS - 1):
        try:
            return RetryingRDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        except (IntegrityError, ProgrammingError):
            # Another process created the table after this one had looked for it
            time.sleep(PAUSE_SECONDS / 4)
    return RetryingRDBStorage(url, engine_kwargs={"pool_pre_ping": True})


class SingleWriterCache(_CachedStorage):
    """A cache of the trials in a database, for a process that is the only one to write, or knows when others have.

    A trial is read again only after this process has changed it, or after `refresh`. Optuna's own cache reads all
    unfinished trials at every access, which took 0.2 to 0.3 s of CPU a trial on sqlite.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self.backend = backend
        # Ids of trials that this process has changed since they were read
        self._changed: set[int] = set()
        self._stale = True
        if isinstance(backend, RetryingRDBStorage):
            backend.on_recovery = self.refresh

    def refresh(self) -> None:
        """Read at the next access what other processes may have written."""
        self._stale = True

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        self._changed.add(trial_id)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self._changed.add(trial_id)
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        self._changed.add(trial_id)
        return super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._changed.add(trial_id)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._changed.add(trial_id)
        super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._changed.add(trial_id)
        super().set_trial_system_attr(trial_id, key, value)

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        """Read all trials that may have changed when the cache is stale, and else those that this process has changed.

        Optuna reads the trials of `unfinished_trial_ids`, and those with an id above `last_finished_trial_id`.
        """
        if self._stale or study_id not in self._studies:
            self._stale = False
            self._changed.clear()
            super()._read_trials_from_remote_storage(study_id)
        elif self._changed:
            study = self._studies[study_id]
            last_finished, unfinished = study.last_finished_trial_id, study.unfinished_trial_ids
            study.last_finished_trial_id = max(trial._trial_id for trial in study.trials.values())
            study.unfinished_trial_ids, self._changed = self._changed, set()
            try:
                super()._read_trials_from_remote_storage(study_id)
            finally:
                # As before, since other processes may have created trials with ids in between
                study.last_finished_trial_id = last_finished
                study.unfinished_trial_ids |= unfinished


def retry_storage(
    work: Callable[[], T],
    url: str,
    *,
    if_finished: Callable[[], T] | None = None,
    on_recovery: Callable[[], None] = lambda: None,
) -> T:
    """Return what some work on a database server returns, and repeat it while the server is unavailable.

    Args:
        work: may be done twice.
        url: of the database, for messages.
        if_finished: returns the answer if a repetition finds the trial finished, by the first try or by another driver.
        on_recovery: called when the work has succeeded after a repetition.

    Raises:
        UsageError: the server has been unavailable for PATIENCE_SECONDS.
    """
    failures = 0

    def attempt() -> T:
        try:
            return work()
        except UpdateFinishedTrialError:
            if not failures or if_finished is None:
                raise
            return if_finished()

    def on_retry(error: Exception) -> None:
        nonlocal failures
        failures += 1
        if failures == 1:
            logging.getLogger(__name__).warning(
                "the study's storage is unavailable and is asked again for %.0f s: %s",
                PATIENCE_SECONDS,
                mask_password(url),
            )

    try:
        answer = retry(
            attempt,
            is_transient=_is_unavailable,
            seconds=PATIENCE_SECONDS,
            pauses=[PAUSE_SECONDS],
            on_retry=on_retry,
        )
    except (*UNAVAILABLE, StorageInternalError) as error:
        if not _is_unavailable(error):
            raise
        raise storage_error("the study's storage", url, _cause(error)) from None
    if failures:
        on_recovery()
    return answer


def _cause(error: Exception) -> Exception:
    """Return SQLAlchemy's error where Optuna has wrapped it."""
    if isinstance(error, StorageInternalError) and isinstance(error.__cause__, Exception):
        return error.__cause__
    return error


def _is_unavailable(error: Exception) -> bool:
    return isinstance(_cause(error), UNAVAILABLE)


class RetryingRDBStorage(RDBStorage):
    """Optuna's storage on a database server, whose calls are repeated while the server is unavailable.

    A server may stop between a commit and its answer. What is written twice then is the same, and a trial that has
    finished stays as it finished. But a trial that was created or taken from the queue may be left running with no
    process to train it: `Study.requeue_stale` finds it.

    The methods are those that Optuna's cache calls.
    """

    # Called when a call has succeeded after a repetition
    on_recovery: Callable[[], None] = staticmethod(lambda: None)

    def _retry(self, work: Callable[[], T], *, if_finished: Callable[[], T] | None = None) -> T:
        return retry_storage(work, self.url, if_finished=if_finished, on_recovery=self.on_recovery)

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        create = super().create_new_study
        return self._retry(lambda: create(directions, study_name))

    def get_study_id_from_name(self, study_name: str) -> int:
        get = super().get_study_id_from_name
        return self._retry(lambda: get(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        get = super().get_study_name_from_id
        return self._retry(lambda: get(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        get = super().get_study_directions
        return self._retry(lambda: get(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        get = super().get_study_user_attrs
        return self._retry(lambda: get(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        get = super().get_study_system_attrs
        return self._retry(lambda: get(study_id))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        set_attr = super().set_study_user_attr
        self._retry(lambda: set_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        set_attr = super().set_study_system_attr
        self._retry(lambda: set_attr(study_id, key, value))

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        create = super()._create_new_trial
        return self._retry(lambda: create(study_id, template_trial))

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        set_param = super()._set_trial_param
        self._retry(lambda: set_param(trial_id, param_name, param_value_internal, distribution, previous_distribution))

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        get = super()._get_trials
        return self._retry(lambda: get(study_id, states, included_trial_ids, trial_id_greater_than))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        set_state = super().set_trial_state_values
        return self._retry(lambda: set_state(trial_id, state, values), if_finished=lambda: True)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        set_value = super().set_trial_intermediate_value
        self._retry(lambda: set_value(trial_id, step, intermediate_value), if_finished=lambda: None)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        set_attr = super().set_trial_user_attr
        self._retry(lambda: set_attr(trial_id, key, value), if_finished=lambda: None)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        set_attr = super().set_trial_system_attr
        self._retry(lambda: set_attr(trial_id, key, value), if_finished=lambda: None)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        get = super().get_trial
        return self._retry(lambda: get(trial_id))

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        get = super().get_trial_id_from_study_id_trial_number
        return self._retry(lambda: get(study_id, trial_number))

    def _get_best_trial_id(self, study_id: int, direction: StudyDirection) -> int:
        get = super()._get_best_trial_id
        return self._retry(lambda: get(study_id, direction))
