"""The process of one trial: confined to its slot, heard by its driver, and gone when its driver is gone."""

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

from pipeline.runtime.errors import Diverged, Stopped
from pipeline.runtime.text import printable
from pipeline.search.executors import forkserver, out_of_memory
from pipeline.search.executors.base import EpochReport, TrialJob
from pipeline.search.executors.slots import Slot
from pipeline.tracking.tags import TrialOutcome

OUTPUT = "output.txt"
REASON_CHARACTERS = 500


@dataclass(frozen=True)
class WorkerStarted:
    """The trial's own code begins, `at` this time of the system-wide monotonic clock."""

    at: float


@dataclass(frozen=True)
class WorkerResult:
    """How the trial ended, in its own words."""

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
    """A trial as its own code sees it: where it is, and the line to its driver."""

    def __init__(self, job: TrialJob, slot: Slot, folder: Path, driver: Connection) -> None:
        self.slot = slot
        self.folder = folder  # of its own, gone after it
        self.metrics: dict[str, float] = {}  # the figures of the whole trial so far
        self._number = job.number
        self._driver = driver
        self._asked: TrialOutcome | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Tell the driver the metrics of an epoch, counted from 1."""
        self._driver.send(EpochReport(self._number, epoch, dict(metrics)))

    def raise_if_stopped(self) -> None:
        """Raise Asked if the driver has asked the trial to end; to be called often."""
        if self._asked:
            raise StopRequested(self._asked)

    def classify_error(self, error: BaseException) -> tuple[TrialOutcome, str]:
        """What has become of a trial that ended by this exception, and why, in one line."""
        if isinstance(error, Stopped):
            outcome = self._asked or TrialOutcome.STOPPED
            return outcome, f"by {error}"
        if isinstance(error, Diverged):
            return TrialOutcome.DIVERGED, str(error)
        outcome = TrialOutcome.OOM if out_of_memory.is_oom_error(error) else TrialOutcome.RAISED
        return outcome, f"{type(error).__name__}: {_telling_line(str(error))}"[:REASON_CHARACTERS]

    def _listen(self) -> None:
        """Take what the driver asks. The line ends with the driver, however it died, and the trial with the line."""
        while True:
            try:
                self._asked = self._driver.recv()
            except (EOFError, OSError):
                shutil.rmtree(self.folder, ignore_errors=True)
                os.killpg(0, signal.SIGKILL)


Work = Callable[[TrialJob, WorkerContext], None]


def run(job: TrialJob, slot: Slot, folder: Path, driver: Connection, work: Work) -> None:
    """Do the work of a trial as the first and last thing of this process."""
    os.setsid()  # its own group: a Ctrl-C in the terminal is the driver's, and one signal reaches all it starts
    for number in forkserver.BLOCKED_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, forkserver.BLOCKED_SIGNALS)
    os.environ.update(slot.environment())
    tempfile.tempdir = str(folder)  # TensorFlow writes a file a traced function, and this process takes no leave
    _write_to(folder / OUTPUT)
    trial = WorkerContext(job, slot, folder, driver)
    try:
        check_untouched_device()
        driver.send(WorkerStarted(time.monotonic()))
        work(job, trial)
        verdict = WorkerResult(TrialOutcome.FINISHED, "", trial.metrics)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is this trial's end and the driver's to judge
        traceback.print_exc()
        verdict = WorkerResult(*trial.classify_error(error), trial.metrics)
    sys.stdout.flush()
    sys.stderr.flush()
    driver.send(verdict)
    os._exit(0)  # no thread that a library left, and no destructor on a GPU, can hold the slot


def check_untouched_device() -> None:
    """Fail where TensorFlow looked at devices before this process was forked: it would not look again.

    Raises:
        RuntimeError: some module does work on import.
    """
    module = sys.modules.get("tensorflow.python.eager.context")  # absent: not imported, so nothing was touched
    context = module and module._context
    if context and (context._initialized or context._physical_devices is not None):
        raise RuntimeError(
            "TensorFlow had touched a device before the trial's process was given its own; "
            "a module that the fork server imports must only define things"
        )


def _write_to(file: Path) -> None:
    """Send what this process writes to a file, which survives it, with a native crash's stack at the end."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable(all_threads=False)


def _telling_line(message: str) -> str:
    """The first line that says something: TensorFlow puts the same few before each of its errors."""
    empty = ("Graph execution error", "Detected at node", "<stack traces unavailable>")
    lines = [line.strip() for line in message.splitlines()]
    return printable(next((line for line in lines if line and not line.startswith(empty)), ""))
