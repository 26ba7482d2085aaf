"""The storage of a study: what the cache reads again, and how calls survive an outage of the database."""

import inspect
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage, _CachedStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError, PendingRollbackError

from pipeline.runtime.errors import UsageError
from pipeline.search import storage
from pipeline.search.loop import SearchLoop
from pipeline.search.storage import RetryingRDBStorage, open_storage, retry_storage
from tests.support.scripted import (
    CONTINUOUS,
    DISCRETE,
    ScriptedExecutor,
    make_search,
    open_study,
    search_context,
    successful_trial,
)


@pytest.fixture
def queries(monkeypatch):
    """Record the numbers of the trials that are read from the database, a set for each query."""
    numbers = []
    get = RDBStorage._get_trials

    def recording(self, study_id, states, included_trial_ids, trial_id_greater_than):
        found = get(self, study_id, states, included_trial_ids, trial_id_greater_than)
        numbers.append({trial.number for trial in found})
        return found

    monkeypatch.setattr(RDBStorage, "_get_trials", recording)
    return numbers


@pytest.fixture
def study(tmp_path):
    return lambda: open_study(tmp_path, make_search(tmp_path, CONTINUOUS))


def test_cache_reads_unfinished_trials_again_only_if_they_have_changed(tmp_path, queries):
    # Optuna's asha keeps a record in the trial
    mine = open_study(tmp_path, make_search(tmp_path, CONTINUOUS, "--pruner", "none"))
    first, _second = mine.ask(), mine.ask()
    mine.trials()
    queries.clear()
    mine.report(first.number, 1, 0.5)
    assert mine.trials()[first.number].intermediate_values == {1: 0.5}
    mine.trials()
    assert queries == [{first.number}]


def test_cache_shows_what_this_process_wrote_at_once(study):
    mine = study()
    proposal = mine.ask()
    mine.set_trial_attrs(proposal.number, {"parameters": 7})
    mine.complete(proposal.number, [0.5])
    (trial,) = mine.trials()
    assert (trial.state.name, trial.values, trial.user_attrs, trial.params) == (
        "COMPLETE",
        [0.5],
        {"parameters": 7},
        proposal.params,
    )
    mine.requeue(mine.ask().number)
    assert [trial.state.name for trial in mine.trials()] == ["COMPLETE", "FAIL", "WAITING"]
    assert [trial.state.name for trial in study().trials()] == ["COMPLETE", "FAIL", "WAITING"]


def test_cache_shows_what_others_wrote_after_a_refresh(study):
    mine, other = study(), study()
    other.complete(other.ask().number, [0.5])
    assert mine.trials() == []
    mine.refresh()
    assert [trial.values for trial in mine.trials()] == [[0.5]]
    proposal = other.ask()
    mine.refresh()
    assert [trial.state.name for trial in mine.trials()] == ["COMPLETE", "RUNNING"]
    other.complete(proposal.number, [0.6])
    mine.refresh()
    assert [trial.values for trial in mine.trials()] == [[0.5], [0.6]]


def states(study):
    return [trial.state.name for trial in study.trials()]


def test_search_continues_over_a_restart_of_its_database_and_loses_and_repeats_nothing(postgres, shared_study):
    mine = shared_study(DISCRETE, "--trials", "6")

    def answer(job):
        if job.number in (1, 3):
            postgres.restart()
        return successful_trial(job, 0.3, 0.5)

    executor = ScriptedExecutor(answer, slots=2)
    assert SearchLoop(search_context(mine, executor)).run() == "its 6 trials are done"
    assert len({str(job.config) for job in executor.started}) == len(executor.started) == 6
    kept = shared_study(DISCRETE).trials()
    assert {trial.state for trial in kept} == {TrialState.COMPLETE}
    assert [trial.intermediate_values for trial in kept if "duplicate_of" not in trial.user_attrs] == [
        {1: 0.3, 2: 0.5}
    ] * 6


def test_call_waits_for_an_unavailable_database_and_warns_once(postgres, shared_study, caplog, monkeypatch):
    monkeypatch.setattr(storage, "PAUSE_SECONDS", 0.05)
    mine = shared_study()
    postgres.stop()
    threading.Timer(0.5, postgres.start).start()
    mine.set_attr("key", 1)
    assert shared_study().get_attr("key") == 1
    (said,) = [line for line in caplog.messages if "unavailable" in line]
    assert said.startswith(
        "the study's storage is unavailable and is asked again for 300 s: postgresql+psycopg://pipeline@"
    )


@pytest.mark.parametrize(
    "cause", [PendingRollbackError("a transaction broke"), OperationalError("SELECT", {}, OSError())]
)
def test_retry_storage_repeats_work_after_a_broken_transaction(cause, monkeypatch):
    monkeypatch.setattr(storage, "PAUSE_SECONDS", 0.05)
    answers = iter([StorageInternalError("as Optuna says it"), cause, "done"])

    def work():
        answer = next(answers)
        if answer == "done":
            return answer
        raise answer from cause

    assert retry_storage(work, "postgresql://me@host/studies") == "done"


def test_call_fails_when_the_database_stays_unavailable(postgres, shared_study, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(storage, "PAUSE_SECONDS", 0.05)
    mine = shared_study()
    postgres.stop()
    try:
        with pytest.raises(UsageError, match="^the study's storage must be there and writable: postgresql"):
            mine.set_attr("key", 1)
    finally:
        postgres.start()


def lose_answer(monkeypatch, name):
    """Let the next call of this name do its work, but lose its answer."""
    call, left = getattr(RDBStorage, name), [True]

    def once(self, *args):
        answer = call(self, *args)
        if left and left.pop():
            raise OperationalError("COMMIT", {}, Exception("the server closed the connection"))
        return answer

    monkeypatch.setattr(storage, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(RDBStorage, name, once)


def test_trial_whose_end_was_written_without_an_answer_ends_once(shared_study, monkeypatch):
    mine = shared_study()
    proposal = mine.ask()
    lose_answer(monkeypatch, "set_trial_state_values")
    mine.complete(proposal.number, [0.5])
    assert [(trial.state.name, trial.values) for trial in mine.trials()] == [("COMPLETE", [0.5])]


def test_trial_that_was_created_without_an_answer_is_not_left_running(shared_study, monkeypatch):
    mine = shared_study()
    lose_answer(monkeypatch, "_create_new_trial")
    first = mine.ask()
    second = mine.ask()
    mine.complete(first.number, [0.5])
    mine.complete(second.number, [0.5])
    assert sorted(states(mine)) == ["COMPLETE", "COMPLETE", "FAIL"]


def test_queued_configuration_that_was_taken_without_an_answer_is_proposed_again(shared_study, monkeypatch):
    mine = shared_study(CONTINUOUS + "enqueue: [{learning_rate: 0.01}]")
    lose_answer(monkeypatch, "set_trial_state_values")
    proposals = [mine.ask(), mine.ask()]
    assert 0.01 in [one.params["learning_rate"] for one in proposals]


def test_empty_database_can_be_opened_by_several_at_once(postgres_url, close_databases):
    with ThreadPoolExecutor(4) as pool:
        storages = list(pool.map(open_storage, [postgres_url] * 4))
    assert all(storage.get_all_studies() == [] for storage in storages)


def test_database_without_its_driver_is_refused_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as where it is not installed
    message = r"storage such as postgresql\+psycopg://me@host/db needs its driver: .* -m pip install .*\.\[postgres\]"
    with pytest.raises(UsageError, match=message):
        open_storage("postgresql+psycopg://me@host/db")


def test_wrong_password_is_refused_at_once_and_not_repeated(postgres_url, close_databases):
    began = time.monotonic()
    with pytest.raises(UsageError, match="password authentication failed") as refused:
        open_storage(postgres_url.replace("@", ":wr0ng-secret@"))
    assert "wr0ng" not in str(refused.value)
    assert time.monotonic() - began < storage.PATIENCE_SECONDS / 2


# what is built on Optuna's private parts


def test_retrying_storage_repeats_every_call_that_optunas_cache_makes():
    """Fails where another version of Optuna calls something else of the storage that it caches."""
    called = set(re.findall(r"self\._backend\.(\w+)\(", inspect.getsource(_CachedStorage)))
    # What a search never calls: it deletes no study, lists none, and has its own heartbeat
    unused = {"delete_study", "get_all_studies", "record_heartbeat", "_get_stale_trial_ids"}
    unused |= {"get_heartbeat_interval", "get_heartbeat_stale_trial_callback"}
    assert called - unused == {name for name in vars(RetryingRDBStorage) if callable(getattr(RDBStorage, name, None))}


def test_cache_builds_on_what_optunas_cache_has():
    """Fails where another version of Optuna reads trials in another way."""
    cache = open_storage("sqlite:///:memory:")
    study_id = cache.create_new_study([StudyDirection.MAXIMIZE])
    trial_id = cache.create_new_trial(study_id)
    cache.get_all_trials(study_id)
    study = cache._studies[study_id]
    assert {"trials", "unfinished_trial_ids", "last_finished_trial_id"} <= vars(study).keys()
    assert (study.unfinished_trial_ids, study.last_finished_trial_id) == ({trial_id}, -1)
    parameters = ["self", "study_id"]
    assert list(inspect.signature(_CachedStorage._read_trials_from_remote_storage).parameters) == parameters
    assert "_read_trials_from_remote_storage" in inspect.getsource(_CachedStorage.get_all_trials)


def test_trial_of_another_process_with_an_id_in_between_is_read_after_a_refresh(study):
    mine, other = study(), study()
    first = mine.ask()
    others = other.ask()
    mine.ask()
    mine.complete(first.number, [0.5])
    mine.refresh()
    assert [trial.number for trial in mine.trials()] == [0, 1, 2]
    assert mine.trials()[1].params == dict(others.params)
