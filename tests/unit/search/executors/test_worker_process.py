"""The trial's side of the connection between a driver and the process of a trial."""

import multiprocessing
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from pipeline.runtime.errors import Diverged, Stopped
from pipeline.search.executors import worker_process
from pipeline.search.executors.base import EpochReport, TrialJob
from pipeline.search.executors.slots import Slot
from pipeline.search.executors.worker_process import StopRequested, WorkerContext, check_untouched_device
from pipeline.tracking.tags import RunRef, TrialOutcome
from tests.support.trial_driver import TINY

JOB = TrialJob(7, TINY, RunRef("", ""), "trial")
SLOT = Slot("CPU 1 of 1", None, 1, None)


@pytest.fixture
def signals(monkeypatch):
    """The signals that workers would send to their process group."""
    sent = []

    def killpg(group, number):
        sent.append((group, number.name))
        # nothing runs after it, as nothing would after the signal
        threading.Event().wait()

    monkeypatch.setattr(worker_process.os, "killpg", killpg)
    return sent


@pytest.fixture
def connection(signals, tmp_path):
    """A worker's context in this process, and the driver's end of its connection."""
    driver, worker = multiprocessing.Pipe()
    folder = tmp_path / "trial"
    folder.mkdir()
    yield WorkerContext(JOB, SLOT, folder, worker), driver
    driver.close()
    assert wait_until(lambda: signals), "the worker's thread ends with the connection"


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return value


def stop_reason(context):
    try:
        context.raise_if_stopped()
    except StopRequested as stop:
        return stop.outcome
    return None


def test_report_sends_the_metrics_of_an_epoch_to_the_driver(connection):
    context, driver = connection
    context.report(2, {"val_accuracy": 0.5})
    assert driver.recv() == EpochReport(7, 2, {"val_accuracy": 0.5})


@pytest.mark.parametrize("reason", [TrialOutcome.PRUNED, TrialOutcome.TIMEOUT])
def test_raise_if_stopped_after_a_request_raises_with_its_reason(connection, reason):
    context, driver = connection
    context.raise_if_stopped()
    driver.send(reason)
    assert wait_until(lambda: stop_reason(context)) is reason
    assert context.classify_error(StopRequested(reason)) == (reason, f"by the driver ({reason})")


def test_closed_connection_removes_the_folder_and_kills_the_process_group(connection, signals):
    context, driver = connection
    driver.close()
    assert wait_until(lambda: signals) == [(0, "SIGKILL")]
    assert not context.folder.exists()


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (Stopped(15), TrialOutcome.STOPPED, "by SIGTERM"),
        (Diverged("loss became nan in epoch 1"), TrialOutcome.DIVERGED, "loss became nan in epoch 1"),
        (MemoryError("no room"), TrialOutcome.OOM, "MemoryError: no room"),
        (ValueError("Graph execution error:\n\n  bad shape\nmore"), TrialOutcome.RAISED, "ValueError: bad shape"),
        (KeyError(), TrialOutcome.RAISED, "KeyError: "),
    ],
)
def test_classify_error_gives_outcome_and_first_informative_line(connection, error, outcome, reason):
    context, _ = connection
    assert context.classify_error(error) == (outcome, reason)


def test_classify_error_shortens_long_reasons(connection):
    context, _ = connection
    assert len(context.classify_error(ValueError("x" * 10_000))[1]) == worker_process.REASON_CHARACTERS


@pytest.mark.parametrize(("initialized", "devices"), [(True, None), (False, [])])
def test_check_untouched_device_raises_where_tensorflow_has_listed_devices(monkeypatch, initialized, devices):
    context = SimpleNamespace(_initialized=initialized, _physical_devices=devices)
    monkeypatch.setitem(sys.modules, "tensorflow.python.eager.context", SimpleNamespace(_context=context))
    with pytest.raises(RuntimeError, match="^TensorFlow had touched a device before"):
        check_untouched_device()


@pytest.mark.parametrize("context", [None, SimpleNamespace(_initialized=False, _physical_devices=None)])
def test_check_untouched_device_accepts_tensorflow_that_is_only_imported(monkeypatch, context):
    monkeypatch.setitem(sys.modules, "tensorflow.python.eager.context", SimpleNamespace(_context=context))
    check_untouched_device()
