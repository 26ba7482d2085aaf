"""Trials on this machine, each in a process of its own; what becomes of a crash, of a want of memory, of a timeout."""

import math
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Self

from pipeline.runtime.files import temporary_directory
from pipeline.runtime.parent_watch import PROJECT_RUN_ID_ENV
from pipeline.search.executors import forkserver, out_of_memory, worker_process
from pipeline.search.executors.base import EpochReport, Executor, TrialJob, TrialResult
from pipeline.search.executors.slots import Slot
from pipeline.search.executors.trial import PRELOADED, train_trial
from pipeline.search.executors.worker_process import Work, WorkerResult, WorkerStarted
from pipeline.tracking.tags import TrialOutcome

# What a trial gets after it was asked to end and before it is made to: a step, and a loading or tracing in its midst
SIGTERM_AFTER_SECONDS = 2.0
SIGKILL_AFTER_SECONDS = 10.0
TAIL_BYTES = 65536
TAIL_LINES = 50
LOG = "forkserver.txt"  # holds what a process says before it has an output of its own

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "-1",  # until a trial is given its own
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it is a thread, and threads do not survive a fork
    PROJECT_RUN_ID_ENV: None,  # the driver's own run
    "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorFlow's start-up lines; its errors come as exceptions
}


@dataclass(eq=False)
class _Worker:
    """A trial's process as its driver sees it."""

    job: TrialJob
    slot: Slot
    folder: Path
    process: ForkServerProcess
    line: Connection
    started: float  # this and all times below: time.monotonic()
    minutes: float | None
    line_open: bool = True
    began: float | None = None
    verdict: WorkerResult | None = None
    asked: TrialOutcome | None = None
    signals: list[tuple[float, signal.Signals]] = field(default_factory=list)  # still to be sent, and when

    def __post_init__(self) -> None:
        self.deadline = math.inf if self.minutes is None else self.started + 60 * self.minutes

    def ask(self, outcome: TrialOutcome) -> None:
        """Ask it to end; for any reason but pruning, signals follow if it does not."""
        if self.asked in (None, TrialOutcome.PRUNED):
            self.asked = outcome
        try:
            self.line.send(outcome)
        except OSError:  # it is ending already
            return
        if outcome is not TrialOutcome.PRUNED and not self.signals:
            now = time.monotonic()
            self.signals = [
                (now + SIGTERM_AFTER_SECONDS, signal.SIGTERM),
                (now + SIGKILL_AFTER_SECONDS, signal.SIGKILL),
            ]

    def next_due(self) -> float:
        """When it is to be asked or made to end."""
        return min([self.deadline, *(due for due, _ in self.signals)])

    def enforce(self) -> None:
        """Ask or make it end if its time has come."""
        now = time.monotonic()
        if now >= self.deadline:
            self.deadline = math.inf
            self.ask(TrialOutcome.TIMEOUT)
        while self.signals and now >= self.signals[0][0]:
            self.signal(self.signals.pop(0)[1])

    def signal(self, number: signal.Signals) -> None:
        """Signal the process and all that it started."""
        assert self.process.pid
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:  # it is gone, or so young that it does not lead its group yet
            if self.process.is_alive():
                os.kill(self.process.pid, number)

    def listen(self) -> list[EpochReport]:
        """Take what has come over the line; returns the reports."""
        reports = []
        while self.line_open:
            try:
                if not self.line.poll():
                    break
                said = self.line.recv()
            except (EOFError, OSError):
                self.line_open = False
                break
            if isinstance(said, WorkerStarted):
                self.began = said.at
            elif isinstance(said, WorkerResult):
                self.verdict = said
            else:
                reports.append(said)
        return reports

    def ended(self, verdict: WorkerResult, tail: str) -> TrialResult:
        """What the driver is told of it."""
        late = verdict.outcome is TrialOutcome.TIMEOUT
        foreign = verdict.outcome is TrialOutcome.STOPPED and self.asked is None
        return TrialResult(
            self.job.number,
            verdict.outcome,
            f"took more than {self.minutes:g} minutes" if late else verdict.reason,
            retryable=verdict.outcome is TrialOutcome.CRASHED or foreign,
            metrics=verdict.metrics,
            output_tail=tail,
            slot=self.slot.name,
            started_seconds=None if self.began is None else self.began - self.started,
        )


class LocalExecutor(Executor):
    """An executor on this machine: one process a trial, one trial a slot; one such executor at a time.

    Processes come from a fork server that has imported TensorFlow, while this process need not. A trial ends within
    seconds when this process is gone, however it went. Leaving the context kills what still runs.

    Args:
        slots: where trials run.
        work: what a trial does, as a function of a module: train_trial but for tests.
        preloaded: modules that the fork server imports.
    """

    def __init__(
        self, slots: Sequence[Slot], *, work: Work = train_trial, preloaded: Sequence[str] = PRELOADED
    ) -> None:
        self._free = list(slots)
        self._work = work
        self._preloaded = preloaded
        self._running: dict[int, _Worker] = {}
        self._stillborn: list[EpochReport | TrialResult] = []
        self._kernel_kills = out_of_memory.oom_kill_count()
        self._life = ExitStack()

    def __enter__(self) -> Self:
        self._folder = self._life.enter_context(temporary_directory("trials"))
        self._start_server()
        return self

    def __exit__(self, *error: object) -> None:
        for running in self._running.values():
            running.signal(signal.SIGKILL)
        for running in self._running.values():
            running.process.join()
            running.line.close()
        self._running.clear()
        forkserver.stop()
        self._life.close()

    def describe(self) -> str:
        slots = [*self._free, *(running.slot for running in self._running.values())]
        return f"{len(slots)} at a time: {', '.join(slot.name for slot in slots)}"

    def free(self) -> int:
        return len(self._free)

    def place(self, slots: Sequence[Slot]) -> None:
        """Train in these slots from now on; nothing may run."""
        assert not self._running
        self._free = list(slots)
        self._kernel_kills = out_of_memory.oom_kill_count()

    def start(self, job: TrialJob, *, minutes: float | None) -> None:
        """Train a job in a free slot; it is stopped when it takes more than `minutes`.

        The first call returns when the fork server has imported its modules, further ones at once.
        """
        slot = self._free.pop(0)
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        line, its_line = forkserver.context.Pipe()
        started = time.monotonic()
        self._start_server()  # which the kernel may have killed
        process = forkserver.context.Process(
            target=worker_process.run,
            args=(job, slot, folder, its_line, self._work),
            daemon=True,  # killed if this process ends without leaving the context
        )
        running = _Worker(job, slot, folder, process, line, started, minutes)
        try:
            process.start()
        except (EOFError, OSError):
            line.close()
            self._free.append(slot)
            said = _tail(self._folder / LOG)
            self._stillborn.append(running.ended(WorkerResult(TrialOutcome.CRASHED, "the fork server died", {}), said))
        else:
            self._running[job.number] = running
        its_line.close()  # else the trial's end of the line would stay open after it

    def events(self, timeout: float) -> list[EpochReport | TrialResult]:
        until = time.monotonic() + timeout
        while True:
            for running in self._running.values():
                running.enforce()
            now = time.monotonic()
            due = now if self._stillborn else min([until, *(running.next_due() for running in self._running.values())])
            found = self._await(max(0.0, due - now))
            found, self._stillborn = self._stillborn + found, []
            if found or now >= until:
                return found

    def prune(self, number: int) -> None:
        self._ask(number, TrialOutcome.PRUNED)

    def stop(self, number: int) -> None:
        self._ask(number, TrialOutcome.STOPPED)

    def stop_all(self, *, now: bool) -> None:
        for running in self._running.values():
            running.ask(TrialOutcome.STOPPED)
            if now:
                running.signal(signal.SIGKILL)

    def _ask(self, number: int, outcome: TrialOutcome) -> None:
        if number in self._running:  # else it has ended meanwhile
            self._running[number].ask(outcome)

    def _start_server(self) -> None:
        forkserver.start(self._preloaded, ENVIRONMENT, log=self._folder / LOG)

    def _await(self, seconds: float) -> list[EpochReport | TrialResult]:
        lines = [running.line for running in self._running.values() if running.line_open]
        ends = [running.process.sentinel for running in self._running.values()]
        if not ends:
            time.sleep(seconds)
            return []
        ready = wait([*lines, *ends], seconds)
        found: list[EpochReport | TrialResult] = []
        for running in list(self._running.values()):
            gone = running.process.sentinel in ready  # seen before the last words are taken, which came before it
            found += running.listen()
            if gone:
                found.append(self._end(running))
        return found

    def _end(self, running: _Worker) -> TrialResult:
        """Take leave of a trial whose process is gone."""
        running.process.join()
        running.signal(signal.SIGKILL)  # what it has started and left behind
        running.line.close()
        output = running.folder / worker_process.OUTPUT
        tail = _tail(output if output.exists() else self._folder / LOG)
        verdict = running.verdict or self._post_mortem(running, tail)
        shutil.rmtree(running.folder, ignore_errors=True)
        running.process.close()
        del self._running[running.job.number]
        self._free.append(running.slot)
        return running.ended(verdict, tail)

    def _post_mortem(self, running: _Worker, tail: str) -> WorkerResult:
        """The verdict on a process that ended without one."""
        code = running.process.exitcode
        assert code is not None
        manner = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        if running.asked and running.asked is not TrialOutcome.PRUNED:
            return WorkerResult(running.asked, f"{manner}, as it was asked to end and did not", {})
        if code == -signal.SIGKILL and self._killed_by_kernel():
            return WorkerResult(TrialOutcome.OOM, "killed by the kernel, as memory ran out", {})
        if code == -signal.SIGABRT and out_of_memory.is_oom_message(tail):
            return WorkerResult(TrialOutcome.OOM, f"{manner}, as memory ran out", {})
        return WorkerResult(TrialOutcome.CRASHED, manner, {})

    def _killed_by_kernel(self) -> bool:
        """Whether the kernel has killed for memory once more than is known; each kill explains one trial."""
        new = out_of_memory.oom_kill_count() > self._kernel_kills
        self._kernel_kills += new
        return new


def _tail(file: Path) -> str:
    with open(file, "rb") as output:
        output.seek(max(0, os.fstat(output.fileno()).st_size - TAIL_BYTES))
        lines = output.read().decode(errors="replace").splitlines(keepends=True)
    # with a native crash Python lists all libraries, which would be most of the tail
    return "".join([line for line in lines if not line.startswith("Extension modules:")][-TAIL_LINES:])
