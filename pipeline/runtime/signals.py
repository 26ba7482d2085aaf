"""Signals that ask the process to stop (Ctrl-C, SIGTERM, a closed terminal), and its end soon after one."""

import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from pipeline.runtime import interrupt
from pipeline.runtime.errors import Stopped

ONCE_SECONDS = 1.0  # under `mlflow run` one Ctrl-C comes as SIGINT to the group and as SIGTERM from MLflow
PATIENCE_SECONDS = 4.0  # with a main thread that does not react: compiling with XLA takes a minute
GRACE_SECONDS = 8.0  # `docker stop` kills after ten
DRIVER_GRACE_SECONDS = 30.0  # of a process that counts its interrupts: its trials may need ten of them

_shutdown: "ShutdownState | None" = None
_reason: str = ""


def stop(reason: str) -> None:
    """Ask this process to stop, from any thread, as SIGTERM would; the message of Stopped holds the reason."""
    global _reason
    _reason = reason
    os.kill(os.getpid(), signal.SIGTERM)


class Deadline(ABC):
    """A limit on how long a process may go on after the first signal.

    Attributes:
        on_deadline: called from another thread if the process does not end in time by itself.
    """

    def __init__(self) -> None:
        self.on_deadline: Callable[[Stopped], None] = lambda stopped: None
        self._over = threading.Event()

    @contextmanager
    def deadline(self) -> Iterator[None]:
        """Context manager: end the process some time after a signal, even if the main thread never handles it."""
        with _on_first_signal(self._watch):
            try:
                yield
            finally:
                self._over.set()

    @abstractmethod
    def _watch(self, number: int) -> None:
        """Wait until the block is over, and end the process if that takes too long; runs in another thread."""


class Interrupts(Deadline):
    """The signals that have asked this process to stop; those within a second of each other count as one.

    A process that has not ended DRIVER_GRACE_SECONDS after the first one is ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self._times: list[float] = []
        self._first = 0  # the number of the first signal

    def __call__(self) -> int:
        """Return how many there have been."""
        return len(self._times)

    @property
    def exit_code(self) -> int:
        """Return the exit code of a process that the first of them has stopped."""
        return Stopped(self._first).exit_code

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Count a signal; a signal handler."""
        self._first = self._first or number
        if not self._times or time.monotonic() - self._times[-1] > ONCE_SECONDS:
            self._times.append(time.monotonic())

    def _watch(self, number: int) -> None:
        if not self._over.wait(DRIVER_GRACE_SECONDS):
            _exit_after(PATIENCE_SECONDS, number)
            with suppress(Exception):
                self.on_deadline(Stopped(number))
            interrupt.exit_stopped(number)


@contextmanager
def count_interrupts() -> Iterator[Interrupts]:
    """Context manager: count the signals that ask to stop, where they would end the process otherwise.

    A process that has not ended DRIVER_GRACE_SECONDS after the first one is ended, whatever it waits for.
    """
    interrupts = Interrupts()
    with interrupts.deadline(), handled_by(interrupts.handle):
        yield interrupts


class ShutdownState(Deadline):
    """How far a process that was asked to stop has come; it is ended GRACE_SECONDS after a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.first: float | None = None  # time of the first signal that reached the main thread
        self.stopped: Stopped | None = None  # what it raised

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise Stopped for the first signal, and KeyboardInterrupt for a later Ctrl-C; a signal handler."""
        if self.first is None:
            self.first = time.monotonic()
            self.stopped = Stopped(number, _reason)
            raise self.stopped
        if number == signal.SIGINT and time.monotonic() - self.first > ONCE_SECONDS:
            raise KeyboardInterrupt

    def _watch(self, number: int) -> None:
        exit_timer = _exit_after(GRACE_SECONDS, number)
        if not self._over.wait(PATIENCE_SECONDS):
            with suppress(Exception):
                self.on_deadline(Stopped(number, _reason))
        self._over.wait()
        exit_timer.cancel()


@contextmanager
def handle_signals() -> Iterator[ShutdownState]:
    """Context manager: raise Stopped in the main thread for the first SIGINT, SIGTERM or SIGHUP.

    Later signals wait for the clean-up, except that a Ctrl-C more than a second later ends it with KeyboardInterrupt.
    The process ends within ten seconds of the first signal in any case. Within another `handle_signals` this one does
    nothing but yield the same state.
    """
    global _shutdown, _reason
    if _shutdown:
        yield _shutdown
        return
    _shutdown, _reason = ShutdownState(), ""
    try:
        with _shutdown.deadline(), handled_by(_shutdown.handle), errors_as_stopped():
            yield _shutdown
    finally:
        _shutdown = None


@contextmanager
def errors_as_stopped() -> Iterator[None]:
    """Context manager: within `handle_signals`, raise Stopped in place of an error that comes after the first signal.

    C code may lose what a signal handler raises: TensorFlow, while it traced a training step, raised SystemError.
    """
    try:
        yield
    except Exception as error:
        if _shutdown and _shutdown.stopped:
            raise _shutdown.stopped from error
        raise


@contextmanager
def _on_first_signal(call: Callable[[int], None]) -> Iterator[None]:
    """Context manager: call a function in another thread, with the number, when the first signal arrives."""
    # Python runs signal handlers in the main thread alone, but writes each signal's number to this pipe at once
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        # open to the end: Python reports on stderr when a later signal finds no reader
        with open(reader, "rb", buffering=0) as pipe:
            received = iter(lambda: pipe.read(1), b"")
            number = next((byte[0] for byte in received if byte[0] in _handled()), None)
            if number is not None:
                call(number)
            for _ in received:
                pass

    threading.Thread(target=watch, name="deadline", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        # ends a watch that has seen no signal
        os.close(writer)


def _exit_after(seconds: float, number: int) -> threading.Timer:
    """End this process as one that a signal has stopped, unless the timer is cancelled before."""
    timer = threading.Timer(seconds, interrupt.exit_stopped, [number])
    timer.daemon = True
    timer.start()
    return timer


def _handled() -> set[signal.Signals]:
    """Return the signals that ask to stop; a hang-up that is ignored (nohup) stays ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return {signal.SIGINT, signal.SIGTERM} | (set() if ignored else {signal.SIGHUP})


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Context manager: let `handler` handle the signals that ask to stop."""
    before = {number: signal.signal(number, handler) for number in _handled()}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
