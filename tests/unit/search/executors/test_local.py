"""Trials in real processes on this machine that train, crash, hang or outlive their driver."""

import json
import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise

import mlflow
import psutil
import pytest

from pipeline.runtime import out_of_memory
from pipeline.runtime.cpu import has_bfloat16
from pipeline.runtime.files import cache_folder
from pipeline.search.executors import local
from pipeline.search.executors.base import EpochReport, TrialResult
from pipeline.search.executors.local import LocalExecutor
from pipeline.search.executors.slots import Gpu, make_slots
from pipeline.tracking.tags import Tag, TrialOutcome
from tests.support import misbehaving
from tests.support.paths import ROOT
from tests.support.stores import empty_database
from tests.support.trial_driver import TINY, TrialDriver

TWO_GPUS = make_slots([Gpu("GPU-one", 24_000), Gpu("1", 24_000)], trials_per_gpu=1, workers=1, cores=2)


@pytest.fixture(scope="module")
def local_executor():
    """An open executor with slots on two GPUs that do not exist; its fork server takes seconds to start."""
    patch = pytest.MonkeyPatch()
    patch.setattr(local, "SIGTERM_AFTER_SECONDS", 0.3)
    patch.setattr(local, "SIGKILL_AFTER_SECONDS", 0.6)
    patch.setenv("MLFLOW_RUN_ID", "the driver's own")
    with LocalExecutor(TWO_GPUS, trial_function=misbehaving.call_by_run_id) as executor:
        yield executor
    patch.undo()


@pytest.fixture
def driver(local_executor):
    driver = TrialDriver(local_executor)
    yield driver
    local_executor.stop_all(now=True)
    while local_executor.free() < len(TWO_GPUS):
        local_executor.events(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(empty_database(), folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("trials", artifact_location=str(folder / "artifacts"))
    return client, uri, experiment


def train(driver, store, **changes):
    """Start a trial in a run created as a search does; return the trial's number and the run's id."""
    client, uri, experiment = store
    run_id = client.create_run(experiment).info.run_id
    config = TINY.model_copy(update=changes)
    return driver.start(run_id, tracking_uri=uri, config=config), run_id


def has_ended(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_until(condition, seconds=10):
    """Wait until the condition holds; return its value, false if it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return value


def test_trials_keep_what_is_compiled_for_them_in_the_cache(driver):
    folder = json.loads(driver.run("print_xla_flags").output_tail)
    assert f'="{cache_folder("compiled")}/' in folder


def test_trained_trial_logs_settings_metrics_and_outcome_to_its_run(driver, store):
    number, run_id = train(driver, store)
    result = driver.result(number)
    assert (result.outcome, result.reason, result.retryable) == (TrialOutcome.FINISHED, "", False), result.output_tail
    run = store[0].get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags[Tag.TRIAL_STATE] == "finished"
    resolved = "mixed_bfloat16" if has_bfloat16() else "float32"
    assert run.data.params["precision"] == resolved, "auto is resolved where the device is known"
    reports = [event for event in driver.received if event is not result]
    assert [(report.number, report.epoch) for report in reports] == [(number, 1), (number, 2)]
    history = store[0].get_metric_history(run_id, "val_accuracy")
    assert [(metric.step, metric.value) for metric in history] == [
        (report.epoch, report.metrics["val_accuracy"]) for report in reports
    ]
    assert result.metrics.items() <= run.data.metrics.items()
    assert result.metrics["best_val_accuracy"] == max(metric.value for metric in history)
    assert result.metrics["parameters"] == 378
    assert result.metrics["epochs"] == 2
    assert 0 < result.metrics["tracing_seconds"] < result.metrics["seconds"]


def test_pruned_trial_ends_within_the_epoch_and_keeps_its_curve(driver, store):
    number, run_id = train(driver, store, epochs=100_000)
    driver.wait_for(EpochReport, number)
    driver.executor.prune(number)
    result = driver.result(number)
    assert (result.outcome, result.retryable) == (TrialOutcome.PRUNED, False)
    assert result.metrics["epochs"] < 1000
    run = store[0].get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.tags[Tag.TRIAL_STATE] == "pruned"
    assert "reason" not in run.data.tags
    assert len(store[0].get_metric_history(run_id, "val_accuracy")) == result.metrics["epochs"]
    assert run.data.metrics["best_val_accuracy"] == result.metrics["best_val_accuracy"]


def test_diverged_trial_names_the_metric_and_fails_its_run(driver, store):
    number, run_id = train(driver, store, learning_rate=10.0, weight_decay=10.0, epochs=20)
    result = driver.result(number)
    assert result.outcome is TrialOutcome.DIVERGED
    assert result.reason.startswith("loss became ")
    assert store[0].get_run(run_id).info.status == "FAILED"
    assert store[0].get_run(run_id).data.tags[Tag.REASON] == "diverged"


def test_trial_with_settings_that_do_not_fit_the_data_raises_usage_error(driver, store):
    number, run_id = train(driver, store, patch_size=5)
    result = driver.result(number)
    assert (result.outcome, result.retryable) == (TrialOutcome.RAISED, False)
    assert result.reason.startswith("UsageError: patch_size must divide the image side: 8x8 pixels")
    assert store[0].get_run(run_id).data.tags[Tag.TRIAL_STATE] == "raised"


@pytest.mark.parametrize(
    ("function", "outcome", "reason", "retryable"),
    [
        ("segfault", TrialOutcome.CRASHED, "killed by SIGSEGV", True),
        ("kill_itself", TrialOutcome.CRASHED, "killed by SIGKILL", True),
        ("exit_with_3", TrialOutcome.CRASHED, "exited with status 3", True),
        ("terminate_itself", TrialOutcome.CRASHED, "killed by SIGTERM", True),
        ("divide_by_zero", TrialOutcome.RAISED, "ZeroDivisionError: division by zero", False),
        ("exhaust_tensorflow", TrialOutcome.OOM, "ResourceExhaustedError: OOM when allocating tensor", False),
        ("exhaust_address_space", TrialOutcome.OOM, "ResourceExhaustedError: ", False),
        ("abort_for_memory", TrialOutcome.OOM, "killed by SIGABRT, as memory ran out", False),
    ],
)
def test_failed_trial_has_outcome_reason_and_retryable_and_the_next_trial_finishes(
    driver, function, outcome, reason, retryable
):
    result = driver.run(function)
    assert (result.outcome, result.retryable) == (outcome, retryable)
    assert result.reason.startswith(reason)
    assert "\n" not in result.reason
    assert driver.run("do_nothing").outcome is TrialOutcome.FINISHED


def test_oom_kill_of_the_kernel_accounts_for_one_trial_only(driver, monkeypatch):
    monkeypatch.setattr(out_of_memory, "oom_kill_count", lambda before=out_of_memory.oom_kill_count(): before + 1)
    assert driver.run("kill_itself").outcome is TrialOutcome.OOM
    assert driver.run("kill_itself").outcome is TrialOutcome.CRASHED


def test_output_tail_of_segfault_holds_last_output_and_python_stack(driver):
    tail = driver.run("segfault").output_tail
    assert tail.startswith("about to read address 0\n")
    assert "in segfault" in tail
    assert "Extension modules" not in tail


def test_output_tail_of_exception_is_its_traceback_and_metrics_are_kept(driver):
    result = driver.run("divide_by_zero")
    assert "return 1 / 0" in result.output_tail
    assert result.metrics == {"epochs": 2}


def test_timeout_of_hanging_trial_is_enforced_within_seconds_and_not_retryable(driver):
    started = time.monotonic()
    result = driver.run("hang", minutes=0.01)
    assert (result.outcome, result.reason) == (TrialOutcome.TIMEOUT, "took more than 0.01 minutes")
    assert not result.retryable
    assert time.monotonic() - started < 5


def test_timeout_of_trial_ignoring_sigterm_kills_it_and_its_child_processes(driver):
    number = driver.start("hang_ignoring_sigterm", minutes=0.03)
    pid = driver.executor._workers[number].process.pid
    (child,) = wait_until(psutil.Process(pid).children)
    assert driver.result(number).outcome is TrialOutcome.TIMEOUT
    assert has_ended(pid)
    assert wait_until(lambda: has_ended(child.pid))


def test_stop_ends_the_trial_between_two_steps_with_the_driver_as_reason(driver):
    number = driver.start("step_forever")
    driver.wait_for(EpochReport, number)
    driver.executor.stop(number)
    result = driver.result(number)
    assert (result.outcome, result.reason, result.retryable) == (TrialOutcome.STOPPED, "by the driver (stopped)", False)


def test_stop_all_now_kills_trial_that_ignores_sigterm(driver):
    numbers = [driver.start("hang_ignoring_sigterm"), driver.start("step_forever")]
    driver.executor.stop_all(now=True)
    assert {driver.result(number).outcome for number in numbers} == {TrialOutcome.STOPPED}


def test_trial_sees_only_its_own_gpu_and_no_two_trials_share_one(driver):
    started, results = set(), []
    while len(results) < 6:
        while driver.executor.free() and len(started) < 6:
            started.add(driver.start("print_devices"))
        results += [event for event in driver.executor.events(5) if isinstance(event, TrialResult)]
    by_device = {}
    for result in results:
        assert result.outcome is TrialOutcome.FINISHED, result.output_tail
        first, second = result.output_tail.splitlines()
        assert second == "run None", "the trial does not see the driver's own run"
        device = first.removeprefix("device ").removesuffix(" untouched True")
        assert result.slot == f"GPU {device}"
        by_device.setdefault(device, []).append((result.metrics["started"], result.metrics["ended"]))
    assert set(by_device) == {"GPU-one", "1"}
    for spans in by_device.values():
        assert all(before[1] <= after[0] for before, after in pairwise(sorted(spans)))


def test_trial_computes_with_the_threads_of_its_slot(driver):
    assert driver.run("count_threads").metrics == {"threads": TWO_GPUS[0].threads}


def test_events_without_trials_return_within_a_second_of_the_timeout(local_executor):
    started = time.monotonic()
    assert local_executor.events(0.2) == []
    assert 0.2 <= time.monotonic() - started < 1


DRIVER = """
import sys, time
from pipeline.config.training import TrainingConfig
from pipeline.search.executors.base import TrialJob
from pipeline.tracking.tags import RunRef
from pipeline.search.executors.slots import make_slots
from pipeline.search.executors.local import LocalExecutor
from tests.support import misbehaving

def main(preloaded, *names):
    two = make_slots([], trials_per_gpu=1, workers=2, cores=2)
    with LocalExecutor(two, trial_function=misbehaving.call_by_run_id, preloaded=preloaded.split()) as executor:
        for number, name in enumerate(names):
            executor.start(TrialJob(number, TrainingConfig(), RunRef("", name), "trial"), minutes=None)
        print(*(worker.process.pid for worker in executor._workers.values()), flush=True)
        sys.stdin.readline()
        for result in executor.events(0):
            print(result)
    assert not {"tensorflow", "keras", "mlflow"} & set(sys.modules), "a driver starts fast and holds no GPU"

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.fixture
def other_driver(tmp_path):
    """Return a function that starts a driver in a process of its own and returns that process and its trials' ids."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER, encoding="utf-8")
    path = os.pathsep.join(map(str, (ROOT, tmp_path)))
    environment = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path)}
    started = []

    def start(*names, preloaded=""):
        process = subprocess.Popen(
            [sys.executable, script, preloaded, *names],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert wait_until(lambda: all(os.getpgid(pid) == pid for pid in pids)), (
            "each leads a process group, which Ctrl-C does not reach"
        )
        return process, pids

    yield start
    for process in started:
        process.kill()
        process.communicate()


def descendants(process, size):
    """Return all processes under a driver: fork server, resource tracker, trials and their child processes."""
    parent = psutil.Process(process.pid)
    assert wait_until(lambda: len(parent.children(recursive=True)) == size)
    return parent.children(recursive=True)


def test_killed_driver_ends_its_trials_and_fork_server(other_driver):
    process, pids = other_driver("hang", "hang_ignoring_sigterm")
    processes = {child.pid for child in descendants(process, 5)}
    assert {*pids} < processes
    process.kill()
    assert wait_until(lambda: all(map(has_ended, processes)), seconds=5)


def test_exit_of_the_context_leaves_no_process_and_no_file(other_driver, tmp_path):
    process, _ = other_driver("hang", "hang_ignoring_sigterm")
    processes = {child.pid for child in descendants(process, 5)}
    _, errors = process.communicate("\n", timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert wait_until(lambda: all(map(has_ended, processes)), seconds=5)
    assert list((tmp_path / "convmixer" / "trials").iterdir()) == []


def test_fork_server_that_fails_to_import_crashes_the_trial_with_its_traceback(other_driver, tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0", encoding="ascii")
    process, pids = other_driver("do_nothing", preloaded="broken")
    output, _ = process.communicate("\n", timeout=30)
    assert pids == []
    assert "the fork server died" in output
    assert "ZeroDivisionError" in output
