"""Ctrl-C, SIGTERM and a closed terminal as one exception, raised once, and an end within ten seconds of it."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from pipeline.runtime.errors import Stopped

ONCE_SECONDS = 1.0  # under `mlflow run` one Ctrl-C comes as SIGINT to the group and as SIGTERM from MLflow
PATIENCE_SECONDS = 4.0  # with a main thread that is deep in TensorFlow: compiling with XLA takes a minute
GRACE_SECONDS = 8.0  # docker stop kills after ten

_stopping: "ShutdownState | None" = None
_why: str = ""


def stop(why: str) -> None:
    """Ask this process to stop, from whatever thread, as SIGTERM would; Stopped then says why."""
    global _why
    _why = why
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def count_interrupts() -> Iterator[Callable[[], int]]:
    """Within it the signals are counted, those within a second of each other once; yields the count so far."""
    times: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if not times or time.monotonic() - times[-1] > ONCE_SECONDS:
            times.append(time.monotonic())

    with _handled_by(handle):
        yield lambda: len(times)


class ShutdownState:
    """What is known of the way to the end."""

    def __init__(self) -> None:
        self.first: float | None = None  # when the first signal came to the main thread
        self.last_words: Callable[[Stopped], None] = lambda stopped: None  # said if the main thread does not come to it
        self._over = threading.Event()

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.first is None:
            self.first = time.monotonic()
            raise Stopped(number, _why)
        if number == signal.SIGINT and time.monotonic() - self.first > ONCE_SECONDS:
            raise KeyboardInterrupt

    @contextmanager
    def deadline(self) -> Iterator[None]:
        """Within it a signal ends the process after GRACE_SECONDS, even if the main thread never gets to see it."""
        come, signalled = os.pipe()
        os.set_blocking(signalled, False)
        before = signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(come,), name="deadline", daemon=True).start()
        try:
            yield
        finally:
            self._over.set()
            signal.set_wakeup_fd(before)
            os.close(signalled)  # which ends a watch that has seen no signal

    def _watch(self, come: int) -> None:
        with open(come, "rb", buffering=0) as numbers:
            number = next((byte[0] for byte in iter(lambda: numbers.read(1), b"") if byte[0] in _heard()), None)
        if number is None:
            return
        leave = threading.Timer(GRACE_SECONDS, os._exit, [128 + number])
        leave.daemon = True
        leave.start()
        if not self._over.wait(PATIENCE_SECONDS):
            with suppress(Exception):
                self.last_words(Stopped(number, _why))
        self._over.wait()
        leave.cancel()


@contextmanager
def handle_signals() -> Iterator[ShutdownState]:
    """Within it the first SIGINT, SIGTERM or SIGHUP raises Stopped in the main thread; others wait for the clean-up.

    A Ctrl-C more than a second later ends the clean-up with KeyboardInterrupt. The process ends within ten seconds of
    the first in any case. One within another is the same one.
    """
    global _stopping, _why
    if _stopping:
        yield _stopping
        return
    _stopping, _why = ShutdownState(), ""
    try:
        with _stopping.deadline(), _handled_by(_stopping.handle):
            yield _stopping
    finally:
        _stopping = None


def _heard() -> set[signal.Signals]:
    """Which signals ask to stop; a hang-up that is ignored (nohup) stays ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return {signal.SIGINT, signal.SIGTERM} | (set() if ignored else {signal.SIGHUP})


@contextmanager
def _handled_by(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handle) for number in _heard()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
