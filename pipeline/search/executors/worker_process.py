"""The process of one trial: it keeps to its slot, reports to its driver, and ends when its driver ends."""

import faulthandler
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.runtime import out_of_memory
from pipeline.runtime.errors import Diverged, LimitExceeded, Stopped
from pipeline.runtime.text import printable
from pipeline.search.executors import forkserver
from pipeline.search.executors.base import EpochReport, TrialJob
from pipeline.search.executors.slots import Slot
from pipeline.tracking.tags import TrialOutcome

OUTPUT_FILE = "output.txt"
REASON_CHARACTERS = 500


@dataclass(frozen=True)
class WorkerStarted:
    """Message of a worker whose trial begins."""

    at: float  # time.monotonic(), which is the same clock in all processes of a machine


@dataclass(frozen=True)
class WorkerResult:
    """Last message of a worker: how its trial ended."""

    outcome: TrialOutcome
    reason: str  # one line
    metrics: Mapping[str, float]


class StopRequested(Stopped):
    """The driver asked the trial to end; raised between two steps."""

    def __init__(self, outcome: TrialOutcome) -> None:
        super().__init__(signal.SIGTERM)
        self.outcome = outcome

    def __str__(self) -> str:
        return f"the driver ({self.outcome})"


class WorkerContext:
    """A trial's access to its slot, its folder and its driver.

    Attributes:
        slot: where the trial runs.
        folder: for files of the trial, removed after it.
        metrics: of the whole trial so far; they are part of its result, however it ends.
    """

    def __init__(self, job: TrialJob, slot: Slot, folder: Path, driver: Connection) -> None:
        self.slot = slot
        self.folder = folder
        self.metrics: dict[str, float] = {}
        self._number = job.number
        self._driver = driver
        self._stop_reason: TrialOutcome | None = None
        threading.Thread(target=self._receive_requests, daemon=True).start()

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of an epoch, counted from 1, to the driver."""
        self._driver.send(EpochReport(self._number, epoch, dict(metrics)))

    def raise_if_stopped(self) -> None:
        """Raise StopRequested if the driver has asked the trial to end; to be called after every step."""
        if self._stop_reason:
            raise StopRequested(self._stop_reason)

    def classify_error(self, error: BaseException) -> tuple[TrialOutcome, str]:
        """Return the outcome of a trial that ended with this exception, and the reason in one line."""
        if isinstance(error, Stopped):
            return self._stop_reason or TrialOutcome.STOPPED, f"by {error}"
        if isinstance(error, Diverged):
            return TrialOutcome.DIVERGED, str(error)
        if isinstance(error, LimitExceeded):
            return TrialOutcome.INFEASIBLE, str(error)
        outcome = TrialOutcome.OOM if out_of_memory.is_oom_error(error) else TrialOutcome.RAISED
        return outcome, f"{type(error).__name__}: {_first_informative_line(str(error))}"[:REASON_CHARACTERS]

    def _receive_requests(self) -> None:
        """Receive the driver's requests, and kill this process when the driver is gone.

        The connection closes when the driver's process ends, however it ends.
        """
        while True:
            try:
                self._stop_reason = self._driver.recv()
            except (EOFError, OSError):
                shutil.rmtree(self.folder, ignore_errors=True)
                os.killpg(0, signal.SIGKILL)


TrialFunction = Callable[[TrialJob, WorkerContext], None]


def run_worker(job: TrialJob, slot: Slot, folder: Path, driver: Connection, trial_function: TrialFunction) -> None:
    """Run one trial in this process, send its result to the driver, and exit."""
    # A process group of its own: Ctrl-C in the terminal reaches the driver alone, and one signal to the group reaches
    # all processes that the trial starts.
    os.setsid()
    for number in forkserver.BLOCKED_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, forkserver.BLOCKED_SIGNALS)
    os.environ.update(slot.environment())
    # TensorFlow writes a file for each function that it traces, and this process ends without removing any
    tempfile.tempdir = str(folder)
    _redirect_output(folder / OUTPUT_FILE)
    context = WorkerContext(job, slot, folder, driver)
    try:
        check_untouched_device()
        driver.send(WorkerStarted(time.monotonic()))
        trial_function(job, context)
        result = WorkerResult(TrialOutcome.FINISHED, "", context.metrics)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it ends this trial, and the driver decides
        traceback.print_exc()
        result = WorkerResult(*context.classify_error(error), context.metrics)
    sys.stdout.flush()
    sys.stderr.flush()
    driver.send(result)
    # no thread that a library left, and no destructor on a GPU, can keep the slot occupied
    os._exit(0)


def check_untouched_device() -> None:
    """Raise an error if TensorFlow listed the devices before this process was forked: it would not do so again.

    Raises:
        RuntimeError: a preloaded module does work on import.
    """
    # None if TensorFlow has not been imported, and so has not touched anything
    module = sys.modules.get("tensorflow.python.eager.context")
    context = module and module._context
    if context and (context._initialized or context._physical_devices is not None):
        raise RuntimeError(
            "TensorFlow had touched a device before the trial's process was given its own; "
            "a module that the fork server imports must only define things"
        )


def _redirect_output(file: Path) -> None:
    """Write this process's output to a file that outlives it, and a native crash's stack at the end of it."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable(all_threads=False)


def _first_informative_line(message: str) -> str:
    """Return the first line with information: TensorFlow begins each of its errors with the same few lines."""
    boilerplate = ("Graph execution error", "Detected at node", "<stack traces unavailable>")
    lines = [line.strip() for line in message.splitlines()]
    return printable(next((line for line in lines if line and not line.startswith(boilerplate)), ""))
