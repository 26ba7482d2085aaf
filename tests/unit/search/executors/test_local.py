"""What trials do to themselves, done for real in processes of their own, and what their driver is told."""

import os
import subprocess
import sys
import time
from itertools import pairwise

import mlflow
import psutil
import pytest

from pipeline.runtime.cpu import has_bfloat16
from pipeline.search.executors import local, out_of_memory
from pipeline.search.executors.base import EpochReport, TrialResult
from pipeline.search.executors.local import LocalExecutor
from pipeline.search.executors.slots import Gpu, make_slots
from pipeline.tracking.tags import Tag, TrialOutcome
from tests.support import misbehaving
from tests.support.paths import ROOT
from tests.support.trial_driver import TINY, TrialDriver

TWO_GPUS = make_slots([Gpu("GPU-one", 24_000), Gpu("1", 24_000)], trials_per_gpu=1, workers=1, cores=2)


@pytest.fixture(scope="module")
def local_executor():
    """An executor on two GPUs that are not there; its server takes seconds to start."""
    patient = pytest.MonkeyPatch()
    patient.setattr(local, "SIGTERM_AFTER_SECONDS", 0.3)
    patient.setattr(local, "SIGKILL_AFTER_SECONDS", 0.6)
    patient.setenv("MLFLOW_RUN_ID", "the driver's own")
    with LocalExecutor(TWO_GPUS, trial_function=misbehaving.call_by_run_id) as executor:
        yield executor
    patient.undo()


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
    uri = f"sqlite:///{folder}/mlflow.db"
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("trials", artifact_location=str(folder / "artifacts"))
    return client, uri, experiment


def train(driver, store, **changes):
    """Start a trial in a run as the driver of a search creates it; returns its number and its run's id."""
    client, uri, experiment = store
    run_id = client.create_run(experiment).info.run_id
    config = TINY.model_copy(update=changes)
    return driver.start(run_id, tracking_uri=uri, config=config), run_id


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def comes(condition, seconds=10):
    """Wait until it holds; returns whether it did in time."""
    until = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < until:
        time.sleep(0.02)
    return held


def test_a_trial_leaves_settings_metrics_and_its_end_in_the_run_that_the_driver_created(driver, store):
    number, run_id = train(driver, store)
    ended = driver.end(number)
    assert (ended.outcome, ended.reason, ended.retryable) == (TrialOutcome.FINISHED, "", False), ended.output_tail
    run = store[0].get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags[Tag.TRIAL_STATE] == "finished"
    resolved = "mixed_bfloat16" if has_bfloat16() else "float32"
    assert run.data.params["precision"] == resolved, "auto is resolved where the device is known"
    reported = [event for event in driver.received if event is not ended]
    assert [(report.number, report.epoch) for report in reported] == [(number, 1), (number, 2)]
    history = store[0].get_metric_history(run_id, "val_accuracy")
    assert [(metric.step, metric.value) for metric in history] == [
        (report.epoch, report.metrics["val_accuracy"]) for report in reported
    ]
    assert ended.metrics.items() <= run.data.metrics.items()
    assert ended.metrics["best_val_accuracy"] == max(metric.value for metric in history)
    assert ended.metrics["parameters"] == 378
    assert ended.metrics["epochs"] == 2
    assert 0 < ended.metrics["tracing_seconds"] < ended.metrics["seconds"]


def test_a_pruned_trial_ends_within_the_epoch_and_keeps_its_curve(driver, store):
    number, run_id = train(driver, store, epochs=100_000)
    driver.wait_for(EpochReport, number)
    driver.executor.prune(number)
    ended = driver.end(number)
    assert (ended.outcome, ended.retryable) == (TrialOutcome.PRUNED, False)
    assert ended.metrics["epochs"] < 1000
    run = store[0].get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.tags[Tag.TRIAL_STATE] == "pruned"
    assert "reason" not in run.data.tags
    assert len(store[0].get_metric_history(run_id, "val_accuracy")) == ended.metrics["epochs"]
    assert run.data.metrics["best_val_accuracy"] == ended.metrics["best_val_accuracy"]


def test_a_trial_that_diverges_says_where(driver, store):
    number, run_id = train(driver, store, learning_rate=10.0, weight_decay=10.0, epochs=20)
    ended = driver.end(number)
    assert ended.outcome is TrialOutcome.DIVERGED
    assert ended.reason.startswith("loss became ")
    assert store[0].get_run(run_id).info.status == "FAILED"
    assert store[0].get_run(run_id).data.tags[Tag.REASON] == "diverged"


def test_settings_that_do_not_fit_the_data_fail_the_run_with_the_rule(driver, store):
    number, run_id = train(driver, store, patch_size=5)
    ended = driver.end(number)
    assert (ended.outcome, ended.retryable) == (TrialOutcome.RAISED, False)
    assert ended.reason.startswith("UsageError: patch_size must divide the image side: 8x8 pixels")
    assert store[0].get_run(run_id).data.tags[Tag.TRIAL_STATE] == "raised"


@pytest.mark.parametrize(
    ("name", "outcome", "reason", "retryable"),
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
def test_a_failure_is_told_by_what_it_was_and_whether_it_can_pass(driver, name, outcome, reason, retryable):
    ended = driver.run(name)
    assert (ended.outcome, ended.retryable) == (outcome, retryable)
    assert ended.reason.startswith(reason)
    assert "\n" not in ended.reason
    assert driver.run("do_nothing").outcome is TrialOutcome.FINISHED, "and the next trial is none the worse"


def test_the_kernels_kill_for_memory_is_no_crash_but_only_once(driver, monkeypatch):
    monkeypatch.setattr(out_of_memory, "oom_kill_count", lambda before=out_of_memory.oom_kill_count(): before + 1)
    assert driver.run("kill_itself").outcome is TrialOutcome.OOM
    assert driver.run("kill_itself").outcome is TrialOutcome.CRASHED


def test_the_tail_of_a_segfault_holds_its_last_words_and_where_it_was(driver):
    tail = driver.run("segfault").output_tail
    assert tail.startswith("about to read address 0\n")
    assert "in segfault" in tail
    assert "Extension modules" not in tail


def test_the_tail_of_an_exception_is_its_traceback_and_figures_so_far_are_kept(driver):
    ended = driver.run("divide_by_zero")
    assert "return 1 / 0" in ended.output_tail
    assert ended.metrics == {"epochs": 2}


def test_a_trial_that_hangs_is_stopped_after_its_minutes(driver):
    began = time.monotonic()
    ended = driver.run("hang", minutes=0.01)
    assert (ended.outcome, ended.reason) == (TrialOutcome.TIMEOUT, "took more than 0.01 minutes")
    assert not ended.retryable
    assert time.monotonic() - began < 5


def test_a_trial_that_does_not_hear_sigterm_is_killed_with_all_that_it_started(driver):
    number = driver.start("hang_ignoring_sigterm", minutes=0.03)
    pid = driver.executor._workers[number].process.pid
    (started,) = comes(psutil.Process(pid).children)
    assert driver.end(number).outcome is TrialOutcome.TIMEOUT
    assert gone(pid)
    assert comes(lambda: gone(started.pid))


def test_a_trial_stops_between_two_steps_when_asked(driver):
    number = driver.start("step_forever")
    driver.wait_for(EpochReport, number)
    driver.executor.stop(number)
    ended = driver.end(number)
    assert (ended.outcome, ended.reason, ended.retryable) == (TrialOutcome.STOPPED, "by the driver (stopped)", False)


def test_all_trials_are_killed_at_once_when_now_is_meant(driver):
    numbers = [driver.start("hang_ignoring_sigterm"), driver.start("step_forever")]
    driver.executor.stop_all(now=True)
    assert {driver.end(number).outcome for number in numbers} == {TrialOutcome.STOPPED}


def test_each_trial_sees_its_own_gpu_before_tensorflow_has_seen_any_and_no_two_share_one(driver):
    began, ended = {}, []
    while len(ended) < 6:
        while driver.executor.free() and len(began) < 6:
            began[driver.start("print_devices")] = None
        ended += [event for event in driver.executor.events(5) if isinstance(event, TrialResult)]
    by_device = {}
    for trial in ended:
        assert trial.outcome is TrialOutcome.FINISHED, trial.output_tail
        first, second = trial.output_tail.splitlines()
        assert second == "run None", "the driver's own run is none of the trial's"
        device = first.removeprefix("device ").removesuffix(" untouched True")
        assert trial.slot == f"GPU {device}"
        by_device.setdefault(device, []).append((trial.metrics["started"], trial.metrics["ended"]))
    assert set(by_device) == {"GPU-one", "1"}
    for times in by_device.values():
        assert all(before[1] <= after[0] for before, after in pairwise(sorted(times)))


def test_a_trial_computes_with_the_threads_of_its_slot(driver):
    assert driver.run("count_threads").metrics == {"threads": TWO_GPUS[0].threads}


def test_events_wait_no_longer_than_asked(local_executor):
    began = time.monotonic()
    assert local_executor.events(0.2) == []
    assert 0.2 <= time.monotonic() - began < 1


def test_asking_a_trial_that_has_ended_is_no_mistake(driver):
    number = driver.start("do_nothing")
    driver.end(number)
    driver.executor.prune(number)
    driver.executor.stop(number)


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
    with LocalExecutor(two, trial_function=misbehaving.call_by_run_id, preloaded=preloaded.split()) as local:
        for number, name in enumerate(names):
            local.start(TrialJob(number, TrainingConfig(), RunRef("", name), "trial"), minutes=None)
        print(*(running.process.pid for running in local._workers.values()), flush=True)
        sys.stdin.readline()
        for ended in local.events(0):
            print(ended)
    assert not {"tensorflow", "keras", "mlflow"} & set(sys.modules), "a driver starts fast and holds no GPU"

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.fixture
def other_driver(tmp_path):
    """Starts another driver with trials that see little; returns it and the process ids of its trials."""
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
        assert comes(lambda: all(os.getpgid(pid) == pid for pid in pids)), "each leads a group: Ctrl-C passes it by"
        return process, pids

    yield start
    for process in started:
        process.kill()
        process.communicate()


def family(process, size):
    """All processes under a driver: fork server, resource tracker, trials and what they start."""
    of = psutil.Process(process.pid)
    assert comes(lambda: len(of.children(recursive=True)) == size)
    return of.children(recursive=True)


def test_trials_end_when_their_driver_is_killed(other_driver):
    process, pids = other_driver("hang", "hang_ignoring_sigterm")
    members = {member.pid for member in family(process, 5)}
    assert {*pids} < members
    process.kill()
    assert comes(lambda: all(map(gone, members)), seconds=5)


def test_nothing_is_left_after_the_executor(other_driver, tmp_path):
    process, _ = other_driver("hang", "hang_ignoring_sigterm")
    members = {member.pid for member in family(process, 5)}
    _, errors = process.communicate("\n", timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert comes(lambda: all(map(gone, members)), seconds=5)
    assert list((tmp_path / "convmixer" / "trials").iterdir()) == []


def test_a_fork_server_that_cannot_import_is_told_with_its_traceback(other_driver, tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0", encoding="ascii")
    process, pids = other_driver("do_nothing", preloaded="broken")
    told, _ = process.communicate("\n", timeout=30)
    assert pids == []
    assert "the fork server died" in told
    assert "ZeroDivisionError" in told
