"""Clocks that go on as they are when the time of the system is set."""

import threading
import time
from functools import cache


def seconds_since_boot() -> float:
    """Return the seconds since the host was started, those of its sleep included."""
    # macOS has no CLOCK_BOOTTIME, and its CLOCK_MONOTONIC counts sleep
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Milliseconds:
    """Counts the milliseconds since the epoch, on from the last count: no two are the same within a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def now(self) -> int:
        """Return the time, or the first millisecond after the last one that was returned."""
        with self._lock:
            self._last = max(self._last + 1, int(1000 * (_boot_time() + seconds_since_boot())))
            return self._last


_milliseconds = Milliseconds()


def now_milliseconds() -> int:
    """Return the time in milliseconds since the epoch, later in each call than in the one before.

    Of a metric's points at one step MLflow shows the one with the latest time, and one value at one time counts once.
    """
    return _milliseconds.now()


@cache
def _boot_time() -> float:
    """Return the time of the host's boot by the clock as it was at the first call, in seconds since the epoch."""
    return time.time() - seconds_since_boot()
