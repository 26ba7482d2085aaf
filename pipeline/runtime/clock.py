"""Clocks that go on as they are when the time of the system is set."""

import time
from functools import cache


def seconds_since_boot() -> float:
    """Return the seconds since the host was started, those of its sleep included."""
    # macOS has no CLOCK_BOOTTIME, and its CLOCK_MONOTONIC counts sleep
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def now_milliseconds() -> int:
    """Return the time in milliseconds since the epoch, which never goes back within a process.

    Of a metric's points at one step MLflow shows the one with the latest time.
    """
    return int(1000 * (_boot_time() + seconds_since_boot()))


@cache
def _boot_time() -> float:
    """Return the time of the host's boot by the clock as it was at the first call, in seconds since the epoch."""
    return time.time() - seconds_since_boot()
