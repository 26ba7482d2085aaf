"""The database of a study: opened while others open it too, and waited for while it restarts."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import InMemoryStorage, RDBStorage, _CachedStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, PendingRollbackError, ProgrammingError

from pipeline.runtime.errors import UsageError
from pipeline.runtime.urls import mask_password, refuse_unescaped, storage_error
from pipeline.tracking.project_run import ProjectRun

VARIABLE = "OPTUNA_STORAGE"


def storage_url(storage: str | None, environ: Mapping[str, str]) -> str:
    """Where the study is kept: as told, else as OPTUNA_STORAGE says, else in `optuna.db` beside MLflow's own file."""
    told = storage or environ.get(VARIABLE)
    if told:
        return told
    tracking = environ.get("MLFLOW_TRACKING_URI", "")
    beside = Path(tracking.removeprefix("sqlite:///")) if tracking.startswith("sqlite:///") else Path("mlflow.db")
    return f"sqlite:///{beside.absolute().with_name('optuna.db')}"


def check_environment(environ: Mapping[str, str]) -> None:
    """Refuse an OPTUNA_STORAGE that is no URL, or whose password is not escaped; a password itself is well there.

    Raises:
        UsageError: which does not repeat it.
    """
    told = environ.get(VARIABLE)
    if told and "://" not in told:
        raise UsageError(f"{VARIABLE} must be a URL such as postgresql://me:password@host/studies, got another text")
    refuse_unescaped(VARIABLE, told or "")


def check_storage_url(storage: str, environ: Mapping[str, str]) -> None:
    """Refuse what is no URL, and a password, neither of them repeated in the message.

    Args:
        environ: where `mlflow run` says which run has recorded what was given by flag; empty for a file.

    Raises:
        UsageError: with how to have that run forgotten.
    """
    if "://" not in storage:
        raise UsageError("storage must be a URL such as sqlite:////home/me/studies.db or postgresql://me@host/studies")
    if mask_password(storage) == storage:
        return
    run = ProjectRun.find(environ)
    recorded = (
        ""
        if run is None
        else f"; `mlflow run` has already recorded this one in run {run.id}: remove it with "
        f"`mlflow runs delete --run-id {run.id}` and `mlflow gc --run-ids {run.id}`, and change the password"
    )
    raise UsageError(
        "storage must hold no password: it comes from PGPASSWORD or ~/.pgpass, or with the whole URL in OPTUNA_STORAGE"
        + recorded
    )


class SingleWriterCache(_CachedStorage):
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


PATIENCE_SECONDS = 300.0  # with a database server that is away: a restart, a fail-over
PAUSE_SECONDS = 1.0
UNAVAILABLE = (
    InterfaceError,
    OperationalError,
    PendingRollbackError,
)  # the last of what is asked after a transaction broke
OPENINGS = 10  # where others create the same tables at this moment

T = TypeVar("T")

# All that Optuna's cache asks of what it caches
CALLS = """create_new_study get_study_id_from_name get_study_name_from_id get_study_directions get_study_user_attrs
get_study_system_attrs set_study_user_attr set_study_system_attr _create_new_trial _set_trial_param _get_trials
set_trial_state_values set_trial_intermediate_value set_trial_user_attr set_trial_system_attr get_trial
get_trial_id_from_study_id_trial_number _get_best_trial_id""".split()


def open_storage(url: str | None) -> SingleWriterCache | InMemoryStorage:
    """The storage at a URL; None: one in memory.

    Raises:
        UsageError: it cannot be opened; the message holds no password.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if url is None:
            return InMemoryStorage()
        storage = _opened(url)
        known = SingleWriterCache(storage)
        if isinstance(storage, RetryingRDBStorage):
            storage.came_back = known.refresh
        return known
    except ImportError:
        raise UsageError(
            f"a storage such as {mask_password(url or '')} needs its driver: "
            "pip install -c requirements.lock -e '.[postgres]' brings PostgreSQL's"
        ) from None
    except Exception as error:  # noqa: BLE001 - each kind of database raises its own
        raise storage_error("the study's storage", url or "memory", error) from None


def _opened(url: str) -> RDBStorage:
    if make_url(url).get_backend_name() == "sqlite":
        return RDBStorage(url)
    for _ in range(OPENINGS - 1):
        try:
            return RetryingRDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        except (IntegrityError, ProgrammingError):  # whoever began a moment earlier created the table in between
            time.sleep(PAUSE_SECONDS / 4)
    return RetryingRDBStorage(url, engine_kwargs={"pool_pre_ping": True})


class RetryingRDBStorage(RDBStorage):
    """Optuna's storage on a database server; a call that finds the server away is made again until it is back.

    A server may go between a commit and its answer. What is written twice then is the same, and a trial that has ended
    stays as it ended; but one that was created or taken from the queue may be left running with nobody to train it.
    """

    came_back: Callable[[], None]  # called when a call had to be made again


def retry_storage(work: Callable[[], T], url: str, *, ended: T | None = None) -> T:
    """What a piece of work on the database server returns, made again while that is away.

    Args:
        work: may be made twice.
        url: of the database, for messages.
        ended: returned where a trial turns out to have been ended by the first attempt.

    Raises:
        UsageError: it has been away for too long.
    """
    until: float | None = None
    while True:
        try:
            return work()
        except UpdateFinishedTrialError:
            if until is None or ended is None:
                raise
            return ended
        except (*UNAVAILABLE, StorageInternalError) as error:
            until = _wait(url, error, until)


def _wait(url: str, error: Exception, until: float | None) -> float:
    """Wait a little for a server that is away; returns until when, on time.monotonic()."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if not isinstance(cause, UNAVAILABLE):
        raise error
    if until is None:
        logging.getLogger(__name__).warning(
            "the study's storage is away, for %.0f s it is tried again: %s", PATIENCE_SECONDS, mask_password(url)
        )
        until = time.monotonic() + PATIENCE_SECONDS
    if time.monotonic() >= until:
        raise storage_error("the study's storage", url, cause) from None
    time.sleep(PAUSE_SECONDS)
    return until


def _retrying(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def again(self: RetryingRDBStorage, *given: Any, **more: Any) -> Any:
        calls = 0

        def work() -> Any:
            nonlocal calls
            calls += 1
            return call(self, *given, **more)

        done = retry_storage(work, self.url, ended=True)
        if calls > 1:
            self.came_back()
        return done

    return again


for _name in CALLS:
    setattr(RetryingRDBStorage, _name, _retrying(getattr(RDBStorage, _name)))
