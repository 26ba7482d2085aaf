"""Several drivers of one study on a real PostgreSQL: processes whose trials sleep, one of them killed."""

import os
import signal
import sys
from collections import Counter

import mlflow
import optuna
import psutil
import pytest
from optuna.trial import TrialState

from pipeline.runtime.errors import Unavailable, UsageError
from pipeline.search import coordination, session
from pipeline.search.coordination import DriverRegistry
from pipeline.search.session import ExclusiveCoordinator, SearchContext, SharedCoordinator
from pipeline.search.study import Study
from pipeline.tracking.tags import Tag, TrialOutcome
from tests.support.scripted import SIX, made_search, mlflow_store, opened
from tests.support.sleepers import finish, noted, start_sleeper, wait_for


@pytest.fixture
def url(postgres, request):
    return postgres.database(request.node.name[:60])


@pytest.fixture
def study(url, tmp_path, closing):
    return lambda text=SIX, *flags: Study(
        made_search(tmp_path, text, *flags), url=url, name="mine", image_shape=(8, 8, 1), training_images=180
    )


@pytest.fixture
def start(url, tmp_path):
    """Starts a driver process on one study; its trials have two epochs of so many seconds."""
    started = []

    def start_it(seconds, *flags, together=1):
        uri, variables = mlflow.get_tracking_uri(), {"TOGETHER": str(together)}
        started.append(start_sleeper(tmp_path, seconds, *flags, text=SIX, uri=uri, storage=url, variables=variables))
        return started[-1]

    with mlflow_store(tmp_path):
        yield start_it
        for process in started:
            process.kill()
            sys.stderr.write(process.communicate()[1][-3000:])  # shown where the test fails


def trials_of(url):
    return optuna.load_study(study_name="mine", storage=optuna.storages.RDBStorage(url)).trials


def counted(trials):
    done = {TrialState.COMPLETE, TrialState.PRUNED}
    return [trial for trial in trials if trial.state in done and "duplicate_of" not in trial.user_attrs]


def all_runs():
    return mlflow.search_runs(experiment_names=["mine"], output_format="list")


def test_two_drivers_share_the_budget_and_one_takes_over_from_one_that_was_killed(start, tmp_path, url, closing):
    flags = ["--trials", "5", "--final_top", "1", "--final_seeds", "1"]
    first, second = start(0.4, *flags, together=2), start(0.4, *flags, together=2)
    wait_for(lambda: len({line[0] for line in noted(tmp_path, "trial") if line[1] == "ended"}) == 2)
    wait_for(lambda: Counter(line[1] for line in noted(tmp_path, "trial") if line[0] == str(first.pid))["began"] >= 2)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    out = finish(second)
    trials = trials_of(url)
    assert len(counted(trials)) == 5, [trial.state for trial in trials]
    assert not [trial for trial in trials if trial.state in {TrialState.RUNNING, TrialState.WAITING}]
    ended = Counter(line[4] for line in noted(tmp_path, "trial") if line[1] == "ended")
    assert set(ended.values()) == {1} and len(ended) == 5, "each configuration is trained to its end once"
    assert "winner " in out
    assert [line[1] for line in noted(tmp_path, "winner")] == ["began", "ended"]
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
def test_no_configuration_is_trained_twice_at_once_and_one_driver_runs_the_final(start, tmp_path, url, closing):
    flags = ["--trials", "6", "--final_top", "1", "--final_seeds", "2"]
    outs = [finish(process) for process in [start(0.1, *flags), start(0.1, *flags), start(0.1, *flags)]]
    assert len(counted(trials_of(url))) == 6
    assert Counter(line[4] for line in noted(tmp_path, "trial") if line[1] == "began").most_common(1)[0][1] == 1
    assert len(noted(tmp_path, "winner")) == 2, "began and ended, in one of them"
    assert sum("winner " in out for out in outs) >= 1
    assert len([run for run in all_runs() if run.data.tags.get(Tag.ROLE) == "search"]) == 1


# in one process


def test_a_budget_is_counted_over_all_drivers_and_draws_differ(study):
    one, other = study(), study()
    one.share()
    other.share()
    for mine in (one, other):
        with mine.alone():
            assert mine.ask()
    with one.alone():
        assert one.running() == 2
        first, second = (trial for trial in one.trials() if trial.state == TrialState.RUNNING)
        assert first.params != second.params, "what both drew by chance was answered from the record and drawn again"


def test_what_a_driver_left_that_is_gone_is_queued_again_but_not_what_a_living_one_trains(study, monkeypatch):
    one, other = study(), study()
    gone = one.share()
    other.share()
    with one.alone():
        asked = one.ask()
    with other.alone():
        assert other.requeue_lost() == []
    monkeypatch.setattr(coordination, "_is_dead", lambda note, still: True)
    with other.alone():
        assert [trial.number for trial in other.requeue_lost()] == [asked.number]
    monkeypatch.undo()
    other._drivers.bury(gone.id)
    monkeypatch.setattr(coordination, "BEAT_SECONDS", -1)
    with pytest.raises(UsageError, match="took this one for gone"):
        gone.beat()


def test_what_one_driver_gave_up_for_good_the_others_do_not_try(study):
    one, other = study(), study()
    one.share()
    other.share()
    with one.alone():
        bad = one.ask()
    one.fail(bad.number, again=False)
    tried = []
    for _ in range(5):
        with other.alone():
            tried.append(other.ask().params)
    assert bad.params not in tried
    with other.alone():
        assert other.ask() is None


def test_a_driver_of_another_host_is_gone_when_its_beat_stands_still_while_it_is_looked_at(monkeypatch):
    clock, notes = [1000.0], {}
    monkeypatch.setattr(coordination.time, "monotonic", lambda: clock[0])
    mine = DriverRegistry(lambda: notes, notes.__setitem__)
    away = {**notes[f"driver {mine.id}"], "host": "elsewhere", "beat": 1.0}
    notes["driver away"] = away
    mine.look()
    clock[0] += 3600  # the database was away, or this driver slept
    assert mine.look() == []
    looks = 0
    while not mine.look():
        clock[0] += 15
        looks += 1
    assert 5 <= looks <= 8
    notes["driver away"] = away | {"beat": 2.0}
    assert mine.look() == [] and mine.living() == {mine.id, "away"}


def test_sharing_and_holding_alone_refuse_each_other(study, closing):
    together = SharedCoordinator(study())
    with pytest.raises(UsageError, match="drivers must be shared"):
        ExclusiveCoordinator(study())
    together.release()
    alone = ExclusiveCoordinator(study())
    held = {**study().get_attr("lease"), "process": os.getppid()}  # a process does not refuse itself
    alone._lease._write({**held, "started": psutil.Process(os.getppid()).create_time()})
    with pytest.raises(UsageError, match="drivers must all be shared"):
        SharedCoordinator(study())


def test_a_study_in_a_file_cannot_be_shared(tmp_path):
    with pytest.raises(UsageError, match="drivers=shared must have its study on PostgreSQL"):
        opened(tmp_path, made_search(tmp_path, SIX)).share()


def test_a_lock_is_anothers_when_its_holder_is_gone_and_says_when_it_was_lost(postgres, study):
    one, other = study(), study()
    one.share()
    other.share()
    with one.alone() as held:
        postgres.restart()
        with other.alone() as others:
            pass
    assert (held.lost, others.lost) == (True, False)


class Runs:
    """Begins a run when it has been asked so often."""

    def __init__(self, away):
        self.away = away

    def start_child(self, name, *, role, tags, parent=None):
        self.away -= 1
        if self.away >= 0:
            raise Unavailable("nobody answers")
        return f"run of {name}"


@pytest.fixture
def beats(monkeypatch):
    monkeypatch.setattr(session, "WAIT_SECONDS", 0)
    return []


def context(runs, beats, interrupts=lambda: 0):
    return SearchContext(None, runs, None, interrupts, lambda: beats.append(1), print)


def test_a_run_is_begun_when_the_server_is_back_and_the_study_is_held_meanwhile(beats):
    assert context(Runs(3), beats).start_child("t000", role="trial", tags={}) == "run of t000"
    assert len(beats) == 3


def test_who_is_asked_to_stop_waits_no_longer(beats):
    def interrupts():
        return int(len(beats) >= 2)

    assert context(Runs(1_000_000), beats, interrupts).start_child("t000", role="trial", tags={}) is None
    assert len(beats) == 2
