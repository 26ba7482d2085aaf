"""Coordinating the drivers of a study on PostgreSQL, as processes of which one is killed, and in one process."""

import os
import signal
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import mlflow
import optuna
import pytest
from optuna.trial import TrialState

from pipeline.runtime.errors import Unavailable, UsageError
from pipeline.runtime.process import process_of
from pipeline.search import coordination, session
from pipeline.search.attributes import FINAL, FINISHER, SEARCHED_SECONDS, WINNER
from pipeline.search.session import ExclusiveCoordinator, SearchContext, SharedCoordinator
from pipeline.tracking.tags import RunOutcome, Tag, TrialOutcome
from tests.support.scripted import DISCRETE, make_search, mlflow_store, open_study
from tests.support.sleepers import finish, read_log, start_sleeper, wait_for


@pytest.fixture
def study(shared_study):
    return partial(shared_study, DISCRETE)


@pytest.fixture
def start(postgres_url, tmp_path):
    """Return a function that starts a driver process on one study, whose trials have two epochs of so many seconds."""
    started = []

    def start_driver(seconds, *flags, together=1):
        uri, variables = mlflow.get_tracking_uri(), {"TOGETHER": str(together)}
        started.append(
            start_sleeper(tmp_path, seconds, *flags, text=DISCRETE, uri=uri, storage=postgres_url, variables=variables)
        )
        return started[-1]

    with mlflow_store(tmp_path):
        yield start_driver
        for process in started:
            process.kill()
            sys.stderr.write(process.communicate()[1][-3000:])  # shown where the test fails


def trials_of(postgres_url):
    return optuna.load_study(study_name="mine", storage=optuna.storages.RDBStorage(postgres_url)).trials


def counted(trials):
    done = {TrialState.COMPLETE, TrialState.PRUNED}
    return [trial for trial in trials if trial.state in done and "duplicate_of" not in trial.user_attrs]


def all_runs():
    return mlflow.search_runs(experiment_names=["mine"], output_format="list")


def test_two_drivers_share_the_budget_and_one_recovers_the_trials_of_the_other_that_was_killed(
    start, tmp_path, postgres_url, close_databases
):
    flags = ["--trials", "5", "--final_top", "1", "--final_seeds", "1"]
    first, second = start(0.4, *flags, together=2), start(0.4, *flags, together=2)
    wait_for(lambda: len({line[0] for line in read_log(tmp_path, "trial") if line[1] == "ended"}) == 2)
    wait_for(
        lambda: Counter(line[1] for line in read_log(tmp_path, "trial") if line[0] == str(first.pid))["began"] >= 2
    )
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    out = finish(second)
    trials = trials_of(postgres_url)
    assert len(counted(trials)) == 5, [trial.state for trial in trials]
    assert not [trial for trial in trials if trial.state in {TrialState.RUNNING, TrialState.WAITING}]
    ended = Counter(line[4] for line in read_log(tmp_path, "trial") if line[1] == "ended")
    assert set(ended.values()) == {1} and len(ended) == 5, "each configuration is trained to its end once"
    assert "winner " in out
    assert [line[1] for line in read_log(tmp_path, "winner")] == ["began", "ended"]
    runs = all_runs()
    (parent,) = [run for run in runs if run.data.tags.get(Tag.ROLE) == "search"]
    assert parent.info.status == "FINISHED"
    assert not [run.info.run_name for run in runs if run.info.status == "RUNNING"]
    one, other = sorted((run for run in runs if run.data.tags[Tag.ROLE] == "driver"), key=lambda run: run.info.status)
    assert (one.info.status, other.info.status) == ("FAILED", "FINISHED")
    assert one.data.tags[Tag.PARENT_RUN_ID] == parent.info.run_id
    lost = [
        run
        for run in runs
        if run.data.tags.get(Tag.TRIAL_STATE) == TrialOutcome.LOST and run.data.tags[Tag.ROLE] == "trial"
    ]
    assert len(lost) <= 1 and all(run.data.tags[Tag.DRIVER] == one.data.tags[Tag.DRIVER] for run in lost)


@pytest.mark.slow
def test_three_drivers_train_no_configuration_twice_and_one_runs_the_final(
    start, tmp_path, postgres_url, close_databases
):
    flags = ["--trials", "6", "--final_top", "1", "--final_seeds", "2"]
    outs = [finish(process) for process in [start(0.1, *flags), start(0.1, *flags), start(0.1, *flags)]]
    assert len(counted(trials_of(postgres_url))) == 6
    assert Counter(line[4] for line in read_log(tmp_path, "trial") if line[1] == "began").most_common(1)[0][1] == 1
    assert len(read_log(tmp_path, "winner")) == 2, "began and ended, in one of them"
    assert sum("winner " in out for out in outs) >= 1
    assert len([run for run in all_runs() if run.data.tags.get(Tag.ROLE) == "search"]) == 1


# in one process


def test_running_trials_of_all_drivers_are_counted_and_their_draws_differ(study):
    one, other = study(), study()
    one.share()
    other.share()
    for mine in (one, other):
        with mine.locked():
            assert mine.ask()
    with one.locked():
        assert one.n_running() == 2
        first, second = (trial for trial in one.trials() if trial.state == TrialState.RUNNING)
        assert first.params != second.params, "what both drew by chance was answered from the record and drawn again"


def test_trials_of_dead_drivers_are_requeued_and_those_of_live_ones_are_not(study, monkeypatch):
    one, other = study(), study()
    gone = one.share()
    other.share()
    with one.locked():
        proposal = one.ask()
    with other.locked():
        assert other.requeue_stale() == []
    monkeypatch.setattr(coordination, "_may_live", lambda entry, is_silent: False)
    with other.locked():
        assert [trial.number for trial in other.requeue_stale()] == [proposal.number]
    monkeypatch.undo()
    other._registry.unregister(gone.id)
    monkeypatch.setattr(coordination, "HEARTBEAT_SECONDS", -1)
    with pytest.raises(UsageError, match="took this one for dead"):
        gone.heartbeat()


def test_configuration_that_one_driver_abandoned_is_not_proposed_to_others(study):
    one, other = study(), study()
    one.share()
    other.share()
    with one.locked():
        bad = one.ask()
    one.fail(bad.number, retry=False)
    tried = []
    for _ in range(5):
        with other.locked():
            tried.append(other.ask().params)
    assert bad.params not in tried
    with other.locked():
        assert other.ask() is None


def test_shared_and_exclusive_coordinator_of_one_study_refuse_each_other(study, close_databases):
    together = SharedCoordinator(study())
    pretend_another_process(study())
    with pytest.raises(UsageError, match="drivers must be shared"):
        ExclusiveCoordinator(study())
    together.close()
    ExclusiveCoordinator(study())
    pretend_another_process(study())
    with pytest.raises(UsageError, match="drivers must all be shared"):
        SharedCoordinator(study())


def pretend_another_process(study):
    """Make the registered driver one of the process that started this one: a process does not refuse itself."""
    ((key, entry),) = [(key, entry) for key, entry in study.attrs().items() if key.startswith("driver ") and entry]
    parent = process_of(os.getppid())
    study.set_attr(key, entry | parent.tags())


def test_final_is_the_first_drivers_that_asks_as_long_as_it_lives(study, close_databases):
    first, second = SharedCoordinator(study()), SharedCoordinator(study())
    assert [first.claim_final(), second.claim_final(), first.claim_final()] == [True, False, True]
    first.close()
    assert second.claim_final()


def test_last_of_the_drivers_that_stop_together_closes_the_studys_run(study, close_databases):
    calls = []
    drivers = [SharedCoordinator(study()) for _ in range(3)]
    for number, driver in enumerate(drivers):
        ends = {end: partial(lambda *given: calls.append(given[:2]), number, end) for end in ("close", "leave")}
        driver._run = SimpleNamespace(**ends)
    # none of them has been closed when the last one asks
    for driver in drivers:
        driver.end_run(RunOutcome.STOPPED, "by SIGTERM")
    assert calls == [(0, "leave"), (1, "leave"), (2, "close")]
    for driver in drivers:
        driver.close()
    alone, ended = SharedCoordinator(study()), SharedCoordinator(study())
    ended.close()
    alone._run = drivers[0]._run
    alone.end_run(RunOutcome.FINISHED, "")
    assert calls[-1] == (0, "close")


def test_record_of_the_final_is_kept_for_a_driver_that_claims_it_after_more_trials(study, close_databases):
    mine = study()
    coordinator = SharedCoordinator(mine)
    for key in (FINAL, WINNER):
        mine.set_attr(key, "chosen")
    with mine.locked():
        mine.complete(mine.ask().number, [0.5])
    assert coordinator.claim_final()
    assert mine.get_attr(FINAL) == mine.get_attr(WINNER) == "chosen"


def test_final_that_was_claimed_while_the_lock_was_lost_is_claimed_again(study, close_databases, monkeypatch):
    mine = study()
    coordinator, other = SharedCoordinator(mine), SharedCoordinator(study())
    locked, leases = mine.locked, []

    @contextmanager
    def lost_at_first():
        with locked() as lease:
            yield lease
        leases.append(lease)
        if len(leases) == 1:
            # which the other driver held at the same time
            mine.set_attr(FINISHER, other._registry.id)
            lease.lost = True

    monkeypatch.setattr(mine, "locked", lost_at_first)
    assert not coordinator.claim_final() and len(leases) == 2


def test_study_in_a_file_cannot_be_shared(tmp_path):
    with pytest.raises(UsageError, match="drivers=shared must have its study on PostgreSQL"):
        open_study(tmp_path, make_search(tmp_path, DISCRETE)).share()


def test_searched_seconds_of_drivers_that_record_at_once_never_decrease(study):
    one, other = study(), study()
    one.share()
    other.share()
    one.record_searched_seconds(100.0)
    with one.locked():
        recording = threading.Thread(target=other.record_searched_seconds, args=(110.0,))
        recording.start()
        recording.join(0.3)
        assert recording.is_alive(), "it waits for the lock"
        one.set_attr(SEARCHED_SECONDS, 120.0)
    recording.join()
    assert one.searched_seconds() == 120.0


class UnavailableRuns:
    """Stands in for the run of a study on a server that is unavailable for some calls."""

    def __init__(self, calls):
        self.calls = calls

    def start_child(self, name, *, role, tags, parent=None):
        self.calls -= 1
        if self.calls >= 0:
            raise Unavailable("no answer")
        return f"run of {name}"


@pytest.fixture
def heartbeats(monkeypatch):
    monkeypatch.setattr(session, "WAIT_SECONDS", 0)
    return []


def context(runs, heartbeats, interrupts=lambda: 0):
    return SearchContext(None, runs, None, interrupts, lambda: heartbeats.append(1))


def test_start_child_waits_for_the_server_and_sends_heartheartbeats_meanwhile(heartbeats):
    assert context(UnavailableRuns(3), heartbeats).start_child("t000", role="trial", tags={}) == "run of t000"
    assert len(heartbeats) == 3


def test_start_child_returns_none_after_an_interrupt(heartbeats):
    def interrupts():
        return int(len(heartbeats) >= 2)

    assert (
        context(UnavailableRuns(1_000_000), heartbeats, interrupts).start_child("t000", role="trial", tags={}) is None
    )
    assert len(heartbeats) == 2
