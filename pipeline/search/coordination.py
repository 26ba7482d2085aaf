"""The drivers that hold one study together: each says that it lives, and each can tell which of them are gone."""

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import psutil
from sqlalchemy import Connection, Engine, text

from pipeline.runtime.errors import UsageError
from pipeline.runtime.process import from_tags, liveness, this_process
from pipeline.search.attributes import DRIVER_PREFIX
from pipeline.search.storage import UNAVAILABLE, retry_storage

BEAT_SECONDS = 15.0
SILENCE_SECONDS = 120.0  # after so long without a beat the driver of another host counts as gone


class DriverRegistry:
    """This driver among the others; it is one of them from construction until it leaves.

    A driver of this host is gone when its process is. One of another host is gone when its beat has stood still for
    SILENCE_SECONDS of this driver's own looking: clocks need not agree, and a database that was away ages nobody.

    Args:
        read: all notes of the study.
        write: keep a note in the study.
    """

    def __init__(self, read: Callable[[], Mapping[str, Any]], write: Callable[[str, object], None]) -> None:
        self.id = secrets.token_hex(4)
        self._read, self._write = read, write
        self._seen: dict[str, tuple[float, float, float]] = {}  # by id: last beat, seconds that it stood still, looked
        self._living = frozenset([self.id])
        self._renew()
        self.look()

    def living(self) -> frozenset[str]:
        """Ids of the drivers that lived at the last look, this one among them."""
        return self._living

    def look(self) -> list[str]:
        """Look who lives; returns the ids of those that are gone and have not left."""
        now = time.monotonic()
        gone = []
        others = {
            key.removeprefix(DRIVER_PREFIX): note for key, note in self._read().items() if key.startswith(DRIVER_PREFIX)
        }
        others = {one: note for one, note in others.items() if note and one != self.id}
        for one, note in others.items():
            beat, still, looked = self._seen.get(one, (None, 0.0, now))
            still = still + min(now - looked, 2 * BEAT_SECONDS) if beat == note["beat"] else 0.0
            self._seen[one] = (note["beat"], still, now)
            if _is_dead(note, still):
                gone.append(one)
        self._living = frozenset([self.id, *others]) - set(gone)
        return gone

    def beat(self) -> bool:
        """Say that this driver lives, if it is time to; returns whether it was.

        Raises:
            UsageError: the others took it for gone: its machine slept, say.
        """
        if time.monotonic() - self._beaten <= BEAT_SECONDS:
            return False
        if not self._read().get(DRIVER_PREFIX + self.id):
            raise UsageError(
                "a driver must say at least every two minutes that it lives: the others took this one for gone, and "
                "its trials; start it again"
            )
        self._renew()
        return True

    def bury(self, one: str) -> None:
        """Forget a driver that is gone, after its trials were taken over."""
        self._write(DRIVER_PREFIX + one, None)

    def leave(self) -> None:
        """Be no driver of the study any more; this one's trials have ended."""
        self.bury(self.id)

    def _renew(self) -> None:
        self._beaten = time.monotonic()
        self._write(DRIVER_PREFIX + self.id, this_process().tags() | {"beat": time.time()})


def others_live(notes: Mapping[str, Any]) -> bool:
    """Whether a driver of those that hold a study together may still be there, as far as its notes tell at once."""
    found = [note for key, note in notes.items() if key.startswith(DRIVER_PREFIX) and note]
    return any(not _is_dead(note, still=time.time() - note["beat"]) for note in found)


def _is_dead(note: Mapping[str, Any], still: float) -> bool:
    process = from_tags(note)
    where = liveness(process, heard=note["beat"]) if process else "elsewhere"
    return where == "gone" or (where == "elsewhere" and still >= SILENCE_SECONDS)


LEASE_BEAT_SECONDS = 15.0
LEASE_SILENCE_SECONDS = 120.0  # after so long without a beat the driver of another host counts as gone
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
        if held and is_alive(held):
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
        if now - self._beaten <= LEASE_BEAT_SECONDS:
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


def is_alive(held: dict[str, Any]) -> bool:
    """Whether the driver that a lease names may still be there."""
    if held["host"] != socket.gethostname():
        return bool(time.time() - held["beat"] < LEASE_SILENCE_SECONDS)
    try:
        process = psutil.Process(held["process"])
        same = abs(process.create_time() - held["started"]) < CLOCK_SECONDS  # else its number went to another
        return same and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
    except psutil.NoSuchProcess:
        return False


@dataclass
class LockLease:
    """Whether a lock was held to its end; known after it."""

    lost: bool = False


class AdvisoryLock:
    """An advisory lock (PostgreSQL 15, 13.3.5), of which a connection of its own is the holder."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")  # else it would sit in a transaction
        self._key = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)

    @contextmanager
    def held(self) -> Iterator[LockLease]:
        """Within it no other process holds the lock, unless the server went away: then `lost` is true at the end."""
        held = LockLease()
        line = retry_storage(self._take, self._engine.url.render_as_string(hide_password=False))
        try:
            yield held
        finally:
            held.lost = not self._give_back(line)

    def _take(self) -> Connection:
        line = self._engine.connect()
        try:
            line.execute(text("SELECT pg_advisory_lock(:key)"), {"key": self._key})
        except BaseException:
            line.invalidate()  # not back to the pool, where it might hold the lock
            line.close()
            raise
        return line

    def _give_back(self, line: Connection) -> bool:
        try:
            return bool(line.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": self._key}).scalar())
        except UNAVAILABLE:
            return False
        finally:
            line.close()
