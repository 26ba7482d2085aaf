"""One driver a study: a lease kept in the study, that a driver renews and the next one finds."""

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import psutil

from pipeline.errors import UsageError

BEAT_SECONDS = 15.0
SILENCE_SECONDS = 120.0  # after so long without a beat the driver of another host counts as gone
CLOCK_SECONDS = 5.0  # a clock that is corrected moves the time at which a process seems to have started
SETTLE_SECONDS = 0.2  # two that start at once: the later write stands


class Lease:
    """The right to write in a study; taken on construction.

    Args:
        read: what the study holds of a lease, or None.
        write: keep it in the study.

    Raises:
        UsageError: another driver lives.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[object], None]) -> None:
        self._read, self._write = read, write
        self._beaten = 0.0
        me = psutil.Process()
        self._mine = {"host": socket.gethostname(), "process": me.pid, "started": me.create_time()}
        held = read()
        if held and lives(held):
            raise UsageError(
                f"a study has one driver at a time: process {held['process']} on {held['host']} holds this one; "
                "wait for it, stop it, or name another study"
            )
        self._renew(time.time())
        time.sleep(SETTLE_SECONDS)
        if not self._is_mine():
            raise UsageError("a study has one driver at a time: another one began at this moment; try again")

    def beat(self) -> None:
        """Say that this driver lives; cheap to call often.

        Raises:
            UsageError: another driver holds the study, which took this one for gone: its machine slept, say.
        """
        now = time.time()
        if now - self._beaten <= BEAT_SECONDS:
            return
        if not self._is_mine():
            raise UsageError(
                "a study has one driver at a time: another one went on with this one while this driver was silent; "
                "leave it to that, or stop that and start again"
            )
        self._renew(now)

    def release(self) -> None:
        """Leave the study to the next driver, if no other has taken it."""
        if self._is_mine():
            self._write(None)

    def _renew(self, now: float) -> None:
        self._beaten = now
        self._write({**self._mine, "beat": now})

    def _is_mine(self) -> bool:
        held = self._read() or {}
        return all(held.get(key) == value for key, value in self._mine.items())


def lives(held: dict[str, Any]) -> bool:
    """Whether the driver that a lease names may still be there."""
    if held["host"] != socket.gethostname():
        return bool(time.time() - held["beat"] < SILENCE_SECONDS)
    try:
        process = psutil.Process(held["process"])
        same = abs(process.create_time() - held["started"]) < CLOCK_SECONDS  # else its number went to another
        return same and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
    except psutil.NoSuchProcess:
        return False
