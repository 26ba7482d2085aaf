"""What every executor promises a driver, whether its trials run on this machine or on a Ray cluster."""

import time

import pytest

from pipeline.data.dataset import load_dataset
from pipeline.search import loop
from pipeline.search.executors import local
from pipeline.search.executors.base import EpochReport, Executor, TrialJob, TrialResult
from pipeline.search.executors.local import LocalExecutor
from pipeline.search.executors.ray_executor import RayExecutor
from pipeline.search.executors.slots import make_slots
from pipeline.tracking.tags import RunRef, TrialOutcome
from tests.support import misbehaving
from tests.support.paths import ROOT
from tests.support.scripted import (
    CONTINUOUS,
    RecordingRuns,
    ScriptedExecutor,
    make_search,
    open_study,
    search_context,
    successful_trial,
)
from tests.support.trial_driver import TINY, TrialDriver

TWO = 2  # places


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def executor(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "SIGTERM_AFTER_SECONDS", 0.3)
        patch.setattr(local, "SIGKILL_AFTER_SECONDS", 0.6)
        patch.setenv("PYTHONPATH", str(ROOT))
        work = {"trial_function": misbehaving.call_by_run_id, "preloaded": ()}
        if request.param == "local":
            made = LocalExecutor(make_slots([], trials_per_gpu=1, workers=TWO, cores=TWO), **work)
        else:
            pytest.importorskip("ray", reason="Ray is not installed: pip install -c requirements.lock -e '.[ray]'")
            patch.setattr("pipeline.search.executors.ray_executor.CORES_PER_TRIAL", 1)
            patch.setattr(
                "pipeline.search.executors.ray_executor.MAX_PENDING_CALLS", 8
            )  # at once: fewer than trials come and go
            patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 2}')
            fingerprint = load_dataset(TINY.data, seed=TINY.seed).fingerprint
            made = RayExecutor("local", fingerprint=fingerprint, trials_per_gpu=1, trials=TWO, **work)
        with made as executor:
            yield executor


@pytest.fixture
def driver(executor):
    driver = TrialDriver(executor)
    driver.number = time.monotonic_ns()  # no number of an earlier test's
    yield driver
    executor.stop_all(now=True)
    until = time.monotonic() + 60
    while executor.free() < TWO and time.monotonic() < until:
        executor.events(1)


def test_reports_come_in_order_and_the_end_comes_last(driver):
    number = driver.start("three_epochs")
    ended = driver.end(number)
    assert (ended.outcome, ended.reason, ended.metrics) == (TrialOutcome.FINISHED, "", {"epochs": 3}), ended
    mine = [event for event in driver.received if event.number == number]
    assert [(report.epoch, report.metrics["val_accuracy"]) for report in mine[:-1]] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert mine[-1] is ended


def test_reports_come_while_a_trial_runs_and_it_ends_when_it_is_pruned(driver):
    number = driver.start("step_forever")
    driver.wait_for(EpochReport, number)
    driver.executor.prune(number)
    assert driver.end(number).outcome is TrialOutcome.PRUNED


def test_a_trial_ends_when_it_is_stopped_and_keeps_no_place(driver):
    assert driver.executor.free() == TWO
    number = driver.start("step_forever")
    assert driver.executor.free() == TWO - 1
    driver.wait_for(EpochReport, number)
    driver.executor.stop(number)
    ended = driver.end(number)
    assert (ended.outcome, ended.retryable) == (TrialOutcome.STOPPED, False)
    assert driver.executor.free() == TWO


def test_two_run_at_a_time_and_both_are_killed_when_now_is_meant(driver):
    numbers = [driver.start("step_forever"), driver.start("step_forever")]
    for number in numbers:
        driver.wait_for(EpochReport, number)
    driver.executor.stop_all(now=True)
    assert {driver.end(number).outcome for number in numbers} == {TrialOutcome.STOPPED}


@pytest.mark.parametrize(
    ("name", "outcome", "reason", "retryable"),
    [
        ("segfault", TrialOutcome.CRASHED, "killed by SIGSEGV", True),
        ("exit_with_3", TrialOutcome.CRASHED, "exited with status 3", True),
        ("divide_by_zero", TrialOutcome.RAISED, "ZeroDivisionError: division by zero", False),
        ("abort_for_memory", TrialOutcome.OOM, "killed by SIGABRT, as memory ran out", False),
    ],
)
def test_failed_trial_has_its_outcome_and_the_next_trial_finishes(driver, name, outcome, reason, retryable):
    ended = driver.run(name)
    assert (ended.outcome, ended.reason, ended.retryable) == (outcome, reason, retryable)
    assert ended.output_tail or name == "exit_with_3", "what it said is kept"
    assert driver.run("do_nothing").outcome is TrialOutcome.FINISHED


def test_a_trial_that_hangs_is_stopped_after_its_minutes(driver):
    ended = driver.run("hang", minutes=0.01)
    assert (ended.outcome, ended.reason) == (TrialOutcome.TIMEOUT, "took more than 0.01 minutes")


def test_events_wait_no_longer_than_asked(executor):
    began = time.monotonic()
    assert executor.events(0.2) == []
    assert 0.15 <= time.monotonic() - began < 10


def test_asking_a_trial_that_has_ended_is_no_mistake(driver):
    number = driver.start("do_nothing")
    driver.end(number)
    driver.executor.prune(number)
    driver.executor.stop(number)


def test_a_final_leaves_its_weights_with_the_driver_and_the_winner_is_measured_with_them(driver, tmp_path):
    file = tmp_path / "1.weights.h5"
    for name, role in (("write_weights", "final"), ("read_weights", "winner")):
        driver.number += 1
        driver.executor.start(TrialJob(driver.number, TINY, RunRef("", name), role, weights=file), minutes=None)
        ended = driver.wait_for(TrialResult, driver.number)
        assert ended.outcome is TrialOutcome.FINISHED, ended
    assert (file.read_bytes(), ended.metrics) == (b"weights", {"bytes": 7})


class OnePlace(Executor):
    """An executor of which one place is used."""

    def __init__(self, executor):
        self._executor, self._running = executor, 0

    def free(self):
        return 1 - self._running

    def start(self, job, *, minutes):
        self._running += 1
        self._executor.start(job, minutes=minutes)

    def events(self, timeout):
        happened = self._executor.events(timeout)
        self._running -= sum(isinstance(event, TrialResult) for event in happened)
        return happened

    def describe(self):
        return self._executor.describe()

    def prune(self, number):
        self._executor.prune(number)

    def stop(self, number):
        self._executor.stop(number)

    def stop_all(self, *, now):
        self._executor.stop_all(now=now)


def test_one_place_and_one_seed_give_the_same_trials_in_the_same_order(executor, tmp_path):
    drawn = []
    script = ScriptedExecutor(lambda job: successful_trial(job, 1 / (1 + job.config.learning_rate)))
    for name, where in (("scripted", OnePlace(script)), ("real", OnePlace(executor))):
        (tmp_path / name).mkdir()
        study = open_study(tmp_path / name, make_search(tmp_path, CONTINUOUS, "--trials", "13", "--pruner", "none"))
        runs = RecordingRuns()
        runs.tracking_uri = ""  # as nothing is trained
        loop.SearchLoop(search_context(study, where, runs=runs)).run()
        drawn.append([(trial.number, trial.params, trial.values) for trial in study.trials()])
    assert drawn[0] == drawn[1] and len(drawn[0]) == 13
