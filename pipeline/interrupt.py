"""Ctrl-C and SIGTERM as one exception, raised once."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """Somebody asked the process to stop; not an Exception, so that no `except Exception` swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it the first SIGINT or SIGTERM raises Stopped in the main thread and further ones wait for the clean-up.

    Under `mlflow run` one Ctrl-C comes as SIGINT to the process group and as SIGTERM from MLflow: that counts once.
    A Ctrl-C more than a second later ends the clean-up with KeyboardInterrupt.
    """
    first: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            raise Stopped(number)
        if number == signal.SIGINT and time.monotonic() - first[0] > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
