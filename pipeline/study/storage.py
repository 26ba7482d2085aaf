"""The database of a study: opened while others open it too, and waited for while it restarts."""

import logging
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import InMemoryStorage, RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, PendingRollbackError, ProgrammingError

from pipeline.errors import UsageError
from pipeline.store_urls import masked, unusable
from pipeline.study.known_trials import KnownTrials

PATIENCE_SECONDS = 300.0  # with a database server that is away: a restart, a fail-over
PAUSE_SECONDS = 1.0
AWAY = (InterfaceError, OperationalError, PendingRollbackError)  # the last of what is asked after a transaction broke
OPENINGS = 10  # where others create the same tables at this moment

T = TypeVar("T")

# All that Optuna's cache asks of what it caches
CALLS = """create_new_study get_study_id_from_name get_study_name_from_id get_study_directions get_study_user_attrs
get_study_system_attrs set_study_user_attr set_study_system_attr _create_new_trial _set_trial_param _get_trials
set_trial_state_values set_trial_intermediate_value set_trial_user_attr set_trial_system_attr get_trial
get_trial_id_from_study_id_trial_number _get_best_trial_id""".split()


def open_storage(url: str | None) -> KnownTrials | InMemoryStorage:
    """The storage at a URL; None: one in memory.

    Raises:
        UsageError: it cannot be opened; the message holds no password.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if url is None:
            return InMemoryStorage()
        storage = _opened(url)
        known = KnownTrials(storage)
        if isinstance(storage, _Patient):
            storage.came_back = known.refresh
        return known
    except ImportError:
        raise UsageError(
            f"a storage such as {masked(url or '')} needs its driver: "
            "pip install -c requirements.lock -e '.[postgres]' brings PostgreSQL's"
        ) from None
    except Exception as error:  # noqa: BLE001 - each kind of database raises its own
        raise unusable("the study's storage", url or "memory", error) from None


def _opened(url: str) -> RDBStorage:
    if make_url(url).get_backend_name() == "sqlite":
        return RDBStorage(url)
    for _ in range(OPENINGS - 1):
        try:
            return _Patient(url, engine_kwargs={"pool_pre_ping": True})
        except (IntegrityError, ProgrammingError):  # whoever began a moment earlier created the table in between
            time.sleep(PAUSE_SECONDS / 4)
    return _Patient(url, engine_kwargs={"pool_pre_ping": True})


class _Patient(RDBStorage):
    """Optuna's storage on a database server; a call that finds the server away is made again until it is back.

    A server may go between a commit and its answer. What is written twice then is the same, and a trial that has ended
    stays as it ended; but one that was created or taken from the queue may be left running with nobody to train it.
    """

    came_back: Callable[[], None]  # called when a call had to be made again


def patiently(work: Callable[[], T], url: str, *, ended: T | None = None) -> T:
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
        except (*AWAY, StorageInternalError) as error:
            until = _wait(url, error, until)


def _wait(url: str, error: Exception, until: float | None) -> float:
    """Wait a little for a server that is away; returns until when, on time.monotonic()."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if not isinstance(cause, AWAY):
        raise error
    if until is None:
        logging.getLogger(__name__).warning(
            "the study's storage is away, for %.0f s it is tried again: %s", PATIENCE_SECONDS, masked(url)
        )
        until = time.monotonic() + PATIENCE_SECONDS
    if time.monotonic() >= until:
        raise unusable("the study's storage", url, cause) from None
    time.sleep(PAUSE_SECONDS)
    return until


def _patient(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def again(self: _Patient, *given: Any, **more: Any) -> Any:
        calls = 0

        def work() -> Any:
            nonlocal calls
            calls += 1
            return call(self, *given, **more)

        done = patiently(work, self.url, ended=True)
        if calls > 1:
            self.came_back()
        return done

    return again


for _name in CALLS:
    setattr(_Patient, _name, _patient(getattr(RDBStorage, _name)))
