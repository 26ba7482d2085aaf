"""Trials on this machine, each in a process of its own, and how each of them ended."""

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

from pipeline.runtime import out_of_memory
from pipeline.runtime.compilation_cache import limit_compilation_cache, use_compilation_cache
from pipeline.runtime.environment import environment_changes
from pipeline.runtime.files import temporary_directory
from pipeline.runtime.parent_watch import PROJECT_RUN_ID_ENV
from pipeline.search.executors import forkserver, worker_process
from pipeline.search.executors.base import EpochReport, Executor, TrialJob, TrialResult
from pipeline.search.executors.slots import Slot
from pipeline.search.executors.trial import PRELOADED_MODULES, train_trial
from pipeline.search.executors.worker_process import TrialFunction, WorkerResult, WorkerStarted
from pipeline.tracking.tags import TrialOutcome

# Time that a trial has between the request to end and each signal: it may have to finish a training step, and loading
# data or tracing in the middle of it
SIGTERM_AFTER_SECONDS = 2.0
SIGKILL_AFTER_SECONDS = 10.0

# Part of a trial's output that is kept
TAIL_BYTES = 65536
TAIL_LINES = 50

# Holds what a process writes before it has an output file of its own
FORK_SERVER_LOG = "forkserver.txt"

# None removes a variable
ENVIRONMENT = {
    # until a trial gets its own
    "CUDA_VISIBLE_DEVICES": "-1",
    # telemetry runs in a thread, and threads do not survive a fork
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # the driver's own run
    PROJECT_RUN_ID_ENV: None,
    # hides TensorFlow's start-up lines; its errors come as exceptions
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(eq=False)
class _Worker:
    """A trial's process as its driver sees it; all times are those of time.monotonic()."""

    job: TrialJob
    slot: Slot
    folder: Path
    process: ForkServerProcess
    connection: Connection
    requested_at: float
    minutes: float | None
    connection_open: bool = True
    started_at: float | None = None
    result: WorkerResult | None = None
    stop_reason: TrialOutcome | None = None
    # signals still to be sent, and when
    signals: list[tuple[float, signal.Signals]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.deadline = math.inf if self.minutes is None else self.requested_at + 60 * self.minutes

    def request_stop(self, reason: TrialOutcome) -> None:
        """Ask the trial to end; for any reason but pruning, schedule signals in case it does not."""
        if self.stop_reason in (None, TrialOutcome.PRUNED):
            self.stop_reason = reason
        try:
            self.connection.send(reason)
        except OSError:
            # it is ending already
            return
        if reason is not TrialOutcome.PRUNED and not self.signals:
            now = time.monotonic()
            self.signals = [
                (now + SIGTERM_AFTER_SECONDS, signal.SIGTERM),
                (now + SIGKILL_AFTER_SECONDS, signal.SIGKILL),
            ]

    def next_action_at(self) -> float:
        """Return the time at which `enforce_limits` has to be called next."""
        return min([self.deadline, *(due for due, _ in self.signals)])

    def enforce_limits(self) -> None:
        """Ask the trial to end if its minutes are over, and send the signals that are due."""
        now = time.monotonic()
        if now >= self.deadline:
            self.deadline = math.inf
            self.request_stop(TrialOutcome.TIMEOUT)
        while self.signals and now >= self.signals[0][0]:
            self.send_signal(self.signals.pop(0)[1])

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and to all that it has started."""
        assert self.process.pid
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            # it has ended, or is so young that it does not lead its process group yet
            if self.process.is_alive():
                os.kill(self.process.pid, number)

    def receive(self) -> list[EpochReport]:
        """Read all messages that have arrived and return the epoch reports among them."""
        reports = []
        while self.connection_open:
            try:
                if not self.connection.poll():
                    break
                message = self.connection.recv()
            except (EOFError, OSError):
                self.connection_open = False
                break
            if isinstance(message, WorkerStarted):
                self.started_at = message.at
            elif isinstance(message, WorkerResult):
                self.result = message
            else:
                reports.append(message)
        return reports

    def trial_result(self, result: WorkerResult, output_tail: str) -> TrialResult:
        """Return the result of the trial for its driver."""
        reason = result.reason
        if result.outcome is TrialOutcome.TIMEOUT:
            reason = f"took more than {self.minutes:g} minutes"
        external_signal = result.outcome is TrialOutcome.STOPPED and self.stop_reason is None
        return TrialResult(
            self.job.number,
            result.outcome,
            reason,
            retryable=result.outcome is TrialOutcome.CRASHED or external_signal,
            metrics=result.metrics,
            output_tail=output_tail,
            slot=self.slot.name,
            started_seconds=None if self.started_at is None else self.started_at - self.requested_at,
        )


class LocalExecutor(Executor):
    """An executor on this machine: one process per trial and one trial per slot. Only one can be open at a time.

    Processes are forked from a server that has imported TensorFlow, which the driver's process need not do. Trials end
    within seconds when the driver's process ends, however it ended. Leaving the context kills the trials that still
    run.

    Args:
        slots: where trials run.
        trial_function: what a trial does, a function at the top level of a module; tests pass their own.
        preloaded: names of the modules that the fork server imports.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        *,
        trial_function: TrialFunction = train_trial,
        preloaded: Sequence[str] = PRELOADED_MODULES,
    ) -> None:
        self._free_slots = list(slots)
        self._trial_function = trial_function
        self._preloaded = preloaded
        self._workers: dict[int, _Worker] = {}
        self._failed_starts: list[EpochReport | TrialResult] = []
        self._known_oom_kills = out_of_memory.oom_kill_count()
        self._resources = ExitStack()
        self._compilation: dict[str, str] = {}  # what makes trials keep what is compiled for them

    def __enter__(self) -> Self:
        self._folder = self._resources.enter_context(temporary_directory("trials"))
        self._compiled = use_compilation_cache(self._compilation)
        self._start_fork_server()
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers.values():
            worker.send_signal(signal.SIGKILL)
        for worker in self._workers.values():
            worker.process.join()
            worker.connection.close()
        self._workers.clear()
        forkserver.stop()
        self._resources.close()

    def describe(self) -> str:
        slots = [*self._free_slots, *(worker.slot for worker in self._workers.values())]
        return f"{len(slots)} at a time: {', '.join(slot.name for slot in slots)}"

    def free(self) -> int:
        return len(self._free_slots)

    def use_slots(self, slots: Sequence[Slot]) -> None:
        """Run trials in these slots from now on; no trial may be running."""
        assert not self._workers
        self._free_slots = list(slots)
        self._known_oom_kills = out_of_memory.oom_kill_count()

    def start(self, job: TrialJob, *, minutes: float | None) -> None:
        """Start a job in a free slot; it is stopped when it takes more than `minutes`.

        The first call returns when the fork server has imported its modules, further calls return at once.
        """
        slot = self._free_slots.pop(0)
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        connection, worker_connection = forkserver.context.Pipe()
        requested_at = time.monotonic()
        # again, as the kernel may have killed it
        self._start_fork_server()
        process = forkserver.context.Process(
            target=worker_process.run_worker,
            args=(job, slot, folder, worker_connection, self._trial_function),
            # killed if this process ends without leaving the context
            daemon=True,
        )
        worker = _Worker(job, slot, folder, process, connection, requested_at, minutes)
        try:
            process.start()
        except (EOFError, OSError):
            connection.close()
            self._free_slots.append(slot)
            crash = WorkerResult(TrialOutcome.CRASHED, "the fork server died", {})
            self._failed_starts.append(worker.trial_result(crash, _read_tail(self._folder / FORK_SERVER_LOG)))
        else:
            self._workers[job.number] = worker
        # else this end would stay open when the trial's own has closed
        worker_connection.close()

    def events(self, timeout: float) -> list[EpochReport | TrialResult]:
        deadline = time.monotonic() + timeout
        while True:
            for worker in self._workers.values():
                worker.enforce_limits()
            now = time.monotonic()
            wake_at = min([deadline, *(worker.next_action_at() for worker in self._workers.values())])
            if self._failed_starts:
                wake_at = now
            events = self._failed_starts + self._wait(max(0.0, wake_at - now))
            self._failed_starts = []
            if events or now >= deadline:
                return events

    def prune(self, number: int) -> None:
        self._request_stop(number, TrialOutcome.PRUNED)

    def stop(self, number: int) -> None:
        self._request_stop(number, TrialOutcome.STOPPED)

    def stop_all(self, *, now: bool) -> None:
        for worker in self._workers.values():
            worker.request_stop(TrialOutcome.STOPPED)
            if now:
                worker.send_signal(signal.SIGKILL)

    def _request_stop(self, number: int, reason: TrialOutcome) -> None:
        # a trial that is not there has ended in the meantime
        if number in self._workers:
            self._workers[number].request_stop(reason)

    def _start_fork_server(self) -> None:
        # a node of a cluster has an environment of its own
        changes = environment_changes(os.environ) | ENVIRONMENT | self._compilation
        forkserver.start(self._preloaded, changes, log=self._folder / FORK_SERVER_LOG)

    def _wait(self, seconds: float) -> list[EpochReport | TrialResult]:
        """Wait until a worker sends a message or ends, and return the events."""
        connections = [worker.connection for worker in self._workers.values() if worker.connection_open]
        sentinels = [worker.process.sentinel for worker in self._workers.values()]
        if not sentinels:
            time.sleep(seconds)
            return []
        ready = wait([*connections, *sentinels], seconds)
        events: list[EpochReport | TrialResult] = []
        for worker in list(self._workers.values()):
            # looked up before the messages are read: those of an ended process have all arrived
            ended = worker.process.sentinel in ready
            events += worker.receive()
            if ended:
                events.append(self._release(worker))
        return events

    def _release(self, worker: _Worker) -> TrialResult:
        """Free the slot and the files of a worker whose process has ended, and return its trial's result."""
        worker.process.join()
        # for processes that it has started and left behind
        worker.send_signal(signal.SIGKILL)
        worker.connection.close()
        output = worker.folder / worker_process.OUTPUT_FILE
        tail = _read_tail(output if output.exists() else self._folder / FORK_SERVER_LOG)
        result = worker.result or self._result_from_exit_code(worker, tail)
        shutil.rmtree(worker.folder, ignore_errors=True)
        worker.process.close()
        del self._workers[worker.job.number]
        if self._compiled:
            limit_compilation_cache(self._compiled)
        self._free_slots.append(worker.slot)
        return worker.trial_result(result, tail)

    def _result_from_exit_code(self, worker: _Worker, tail: str) -> WorkerResult:
        """Return the result of a process that ended without sending one."""
        code = worker.process.exitcode
        assert code is not None
        ending = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        if worker.stop_reason and worker.stop_reason is not TrialOutcome.PRUNED:
            return WorkerResult(worker.stop_reason, f"{ending}, as it did not end when asked to", {})
        if code == -signal.SIGKILL and self._is_new_oom_kill():
            return WorkerResult(TrialOutcome.OOM, "killed by the kernel, as memory ran out", {})
        if code == -signal.SIGABRT and out_of_memory.is_oom_message(tail):
            return WorkerResult(TrialOutcome.OOM, f"{ending}, as memory ran out", {})
        return WorkerResult(TrialOutcome.CRASHED, ending, {})

    def _is_new_oom_kill(self) -> bool:
        """Return whether the kernel has killed a process for memory that no earlier trial accounts for."""
        if out_of_memory.oom_kill_count() <= self._known_oom_kills:
            return False
        self._known_oom_kills += 1
        return True


def _read_tail(file: Path) -> str:
    with open(file, "rb") as output:
        output.seek(max(0, os.fstat(output.fileno()).st_size - TAIL_BYTES))
        lines = output.read().decode(errors="replace").splitlines(keepends=True)
    # after a native crash Python lists all extension modules, which would be most of the tail
    return "".join([line for line in lines if not line.startswith("Extension modules:")][-TAIL_LINES:])
