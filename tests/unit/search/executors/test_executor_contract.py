"""The contract of Executor, which LocalExecutor and RayExecutor both fulfil."""

import time

import pytest

from pipeline.data.dataset import load_dataset
from pipeline.search.executors import local, ray_executor, ray_resources
from pipeline.search.executors.base import EpochReport, Executor, TrialJob, TrialResult
from pipeline.search.executors.local import LocalExecutor
from pipeline.search.executors.ray_executor import RayExecutor
from pipeline.search.executors.slots import make_slots
from pipeline.search.loop import SearchLoop
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

SLOTS = 2


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def executor(request):
    """An open executor with two slots on CPUs, whose trials are functions of tests.support.misbehaving."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "SIGTERM_AFTER_SECONDS", 0.3)
        patch.setattr(local, "SIGKILL_AFTER_SECONDS", 0.6)
        patch.setenv("PYTHONPATH", str(ROOT))
        # else each of the trials would import it
        options = {"trial_function": misbehaving.call_by_run_id, "preloaded": [misbehaving.__name__]}
        if request.param == "local":
            made = LocalExecutor(make_slots([], trials_per_gpu=1, workers=SLOTS, cores=SLOTS), **options)
        else:
            pytest.importorskip("ray", reason="Ray is not installed: pip install -c requirements.lock -e '.[ray]'")
            patch.setattr(ray_resources, "CORES_PER_TRIAL", 1)
            # fewer than the trials of these tests, so that a call that stays pending after its trial shows
            patch.setattr(ray_executor, "MAX_PENDING_CALLS", 8)
            patch.setenv("RAY_OVERRIDE_RESOURCES", f'{{"CPU": {SLOTS}}}')
            fingerprint = load_dataset(TINY.data, seed=TINY.seed).fingerprint
            made = RayExecutor("local", fingerprint=fingerprint, trials_per_gpu=1, trials=SLOTS, **options)
        with made as executor:
            yield executor


@pytest.fixture
def driver(executor):
    driver = TrialDriver(executor)
    # no number of an earlier test
    driver.number = time.monotonic_ns()
    yield driver
    executor.stop_all(now=True)
    deadline = time.monotonic() + 60
    while executor.free() < SLOTS and time.monotonic() < deadline:
        executor.events(1)


def test_describe_begins_with_the_number_of_slots(executor):
    assert executor.describe().startswith(f"{SLOTS} at a time")


def test_events_of_finished_trial_are_its_reports_in_order_then_its_result(driver):
    number = driver.start("three_epochs")
    result = driver.result(number)
    assert (result.outcome, result.reason, result.metrics) == (TrialOutcome.FINISHED, "", {"epochs": 3}), result
    *reports, last = [event for event in driver.received if event.number == number]
    assert [(report.epoch, report.metrics["val_accuracy"]) for report in reports] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert last is result


def test_prune_after_a_report_ends_the_running_trial_as_pruned(driver):
    number = driver.start("step_forever")
    driver.wait_for(EpochReport, number)
    driver.executor.prune(number)
    assert driver.result(number).outcome is TrialOutcome.PRUNED


def test_stop_ends_the_running_trial_and_frees_its_slot(driver):
    assert driver.executor.free() == SLOTS
    number = driver.start("step_forever")
    assert driver.executor.free() == SLOTS - 1
    driver.wait_for(EpochReport, number)
    driver.executor.stop(number)
    result = driver.result(number)
    assert (result.outcome, result.retryable) == (TrialOutcome.STOPPED, False)
    assert driver.executor.free() == SLOTS


def test_stop_all_now_kills_two_trials_that_run_at_a_time(driver):
    numbers = [driver.start("step_forever"), driver.start("step_forever")]
    for number in numbers:
        driver.wait_for(EpochReport, number)
    driver.executor.stop_all(now=True)
    assert {driver.result(number).outcome for number in numbers} == {TrialOutcome.STOPPED}


@pytest.mark.parametrize(
    ("function", "outcome", "reason", "retryable"),
    [
        ("segfault", TrialOutcome.CRASHED, "killed by SIGSEGV", True),
        ("exit_with_3", TrialOutcome.CRASHED, "exited with status 3", True),
        ("divide_by_zero", TrialOutcome.RAISED, "ZeroDivisionError: division by zero", False),
        ("abort_for_memory", TrialOutcome.OOM, "killed by SIGABRT, as memory ran out", False),
    ],
)
def test_failed_trial_has_outcome_and_reason_and_the_next_trial_finishes(driver, function, outcome, reason, retryable):
    result = driver.run(function)
    assert (result.outcome, result.reason, result.retryable) == (outcome, reason, retryable)
    assert result.output_tail or function == "exit_with_3", "its output is kept"
    assert driver.run("do_nothing").outcome is TrialOutcome.FINISHED


def test_hanging_trial_ends_as_timeout_after_its_minutes(driver):
    result = driver.run("hang", minutes=0.01)
    assert (result.outcome, result.reason) == (TrialOutcome.TIMEOUT, "took more than 0.01 minutes")


def test_events_without_trials_returns_an_empty_list_after_the_timeout(executor):
    started = time.monotonic()
    assert executor.events(0.2) == []
    assert 0.15 <= time.monotonic() - started < 10


def test_prune_and_stop_of_an_ended_trial_are_ignored(driver):
    number = driver.start("do_nothing")
    driver.result(number)
    driver.executor.prune(number)
    driver.executor.stop(number)


def test_weights_of_a_final_reach_the_driver_and_from_there_the_winner(driver, tmp_path):
    file = tmp_path / "1.weights.h5"
    results = {}
    for function, role in (("write_weights", "final"), ("read_weights", "winner")):
        driver.number += 1
        driver.executor.start(TrialJob(driver.number, TINY, RunRef("", function), role, weights=file), minutes=None)
        results[role] = driver.result(driver.number)
        assert results[role].outcome is TrialOutcome.FINISHED, results[role]
    assert (file.read_bytes(), results["winner"].metrics) == (b"weights", {"bytes": 7})


class SingleSlot(Executor):
    """An executor of which one slot is used."""

    def __init__(self, executor):
        self._executor, self._running = executor, 0

    def describe(self):
        return self._executor.describe()

    def free(self):
        return 1 - self._running

    def start(self, job, *, minutes):
        self._running += 1
        self._executor.start(job, minutes=minutes)

    def events(self, timeout):
        events = self._executor.events(timeout)
        self._running -= sum(isinstance(event, TrialResult) for event in events)
        return events

    def prune(self, number):
        self._executor.prune(number)

    def stop(self, number):
        self._executor.stop(number)

    def stop_all(self, *, now):
        self._executor.stop_all(now=now)


def test_search_with_one_slot_and_one_seed_has_the_same_trials_as_with_a_scripted_executor(executor, tmp_path):
    histories = []
    scripted = ScriptedExecutor(lambda job: successful_trial(job, 1 / (1 + job.config.learning_rate)))
    for name, single in (("scripted", SingleSlot(scripted)), ("real", SingleSlot(executor))):
        (tmp_path / name).mkdir()
        study = open_study(tmp_path / name, make_search(tmp_path, CONTINUOUS, "--trials", "13", "--pruner", "none"))
        runs = RecordingRuns()
        # no tracking server, so that the function called is one of tests.support.misbehaving
        runs.tracking_uri = ""
        SearchLoop(search_context(study, single, runs=runs)).run()
        histories.append([(trial.number, trial.params, trial.values) for trial in study.trials()])
    assert histories[0] == histories[1] and len(histories[0]) == 13
