"""Ctrl-C and SIGTERM as one exception, raised once."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ONCE_SECONDS = 1.0  # under `mlflow run` one Ctrl-C comes as SIGINT to the group and as SIGTERM from MLflow


class Stopped(BaseException):
    """Somebody asked the process to stop; not an Exception, so that no `except Exception` swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Within it SIGINT and SIGTERM are counted, those within a second of each other once; yields the count so far."""
    times: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if not times or time.monotonic() - times[-1] > ONCE_SECONDS:
            times.append(time.monotonic())

    with _handled_by(handle):
        yield lambda: len(times)


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it the first SIGINT or SIGTERM raises Stopped in the main thread and further ones wait for the clean-up.

    A Ctrl-C more than a second later ends the clean-up with KeyboardInterrupt.
    """
    first: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            raise Stopped(number)
        if number == signal.SIGINT and time.monotonic() - first[0] > ONCE_SECONDS:
            raise KeyboardInterrupt

    with _handled_by(handle):
        yield


@contextmanager
def _handled_by(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
