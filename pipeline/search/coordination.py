"""The drivers of a study: their registry, which tells live ones from dead ones, and the lock that they share."""

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, text

from pipeline.runtime.clock import seconds_since_boot
from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import try_lock
from pipeline.runtime.process import (
    Liveness,
    ProcessIdentity,
    announce_process,
    liveness,
    this_process,
)
from pipeline.search.attributes import DRIVER_PREFIX
from pipeline.search.storage import UNAVAILABLE, retry_storage

HEARTBEAT_SECONDS = 15.0
# A driver that this host cannot see counts as dead when its heartbeat has stood still for so long
SILENCE_SECONDS = 120.0
WATCH_PAUSE_SECONDS = 1.0
# Between two looks at an exclusive driver that starts at the same time, and how long to wait for its decision
SETTLE_PAUSE_SECONDS = 0.1
SETTLE_SECONDS = 10.0
BEGAN_AT_ONCE = "a study has one driver at a time: another one began at this moment; try again"

log = logging.getLogger(__name__)


class DriverRegistry:
    """The drivers of a study, each with an entry in the study's attributes.

    This process has an entry from construction until `close`. An exclusive driver allows no other beside it.

    A driver on this host is dead when its process is. One that this host cannot see is dead when its heartbeat has
    stood still for SILENCE_SECONDS while this driver was watching: no clock of either host has a say, and an outage of
    the database ages no driver. A driver that starts watches those that would keep it out.

    Args:
        read: return all attributes of the study.
        write: set an attribute of the study.
        exclusive: whether the study is to have no other driver.
        has_lock: whether this process holds the lock beside the study; True where the study has none.

    Raises:
        UsageError: another driver is alive, and this one or that one is exclusive.
    """

    def __init__(
        self,
        read: Callable[[], Mapping[str, Any]],
        write: Callable[[str, object], None],
        *,
        exclusive: bool,
        has_lock: bool = True,
    ) -> None:
        self.id = secrets.token_hex(4)
        self._read, self._write = read, write
        self._exclusive = exclusive
        self._heartbeats = 0
        # By id: last heartbeat, seconds for which it has stood still, and when that was read
        self._watched: dict[str, tuple[int, float, float]] = {}
        # Ids of drivers whose heartbeat stood still while this one started
        self._silent: frozenset[str] = frozenset()
        self._live = frozenset([self.id])
        self._wait_for_silence(has_lock)
        self._register(starting=exclusive)
        try:
            self._settle()
        except BaseException:
            self.close()
            raise
        dead = self.refresh()
        if exclusive:
            for driver in dead:
                self.unregister(driver)

    def live_drivers(self) -> frozenset[str]:
        """Return the ids of the drivers that were alive at the last `refresh`, this one among them."""
        return self._live

    def refresh(self) -> list[str]:
        """Read which drivers are alive, and return the ids of those that are dead and still registered."""
        now = time.monotonic()
        dead = []
        others = self._others()
        for driver, entry in others.items():
            heartbeat, still, read_at = self._watched.get(driver, (None, 0.0, now))
            if entry["heartbeat"] == heartbeat:
                # A longer pause was this driver's own, or the database's: it says nothing of the other driver
                still += min(now - read_at, 2 * HEARTBEAT_SECONDS)
            else:
                still = 0.0
            self._watched[driver] = (entry["heartbeat"], still, now)
            # Beside an exclusive driver there are only dead ones, and those that are about to be refused
            is_silent = driver in self._silent or still >= SILENCE_SECONDS
            if self._exclusive or entry["exclusive"] or not _may_live(entry, is_silent=is_silent):
                dead.append(driver)
        self._live = frozenset([self.id, *others]) - set(dead)
        return dead

    def heartbeat(self) -> bool:
        """Renew this driver's entry if that is due, and return whether it was; cheap to call often.

        Raises:
            UsageError: this driver's entry is gone: another driver took it for dead, after its machine slept, say.
        """
        if seconds_since_boot() - self._renewed <= HEARTBEAT_SECONDS:
            return False
        if not self._read().get(DRIVER_PREFIX + self.id):
            if self._exclusive:
                raise UsageError(
                    "a study has one driver at a time: another one took over this study while this driver sent no "
                    "heartbeat; let that one go on, or stop it and start again"
                )
            raise UsageError(
                "a driver must send a heartbeat at least every two minutes: the other drivers took this one for dead "
                "and queued its trials again; start it again"
            )
        self._register()
        return True

    def unregister(self, driver: str) -> None:
        """Remove the entry of a dead driver, after its trials were requeued."""
        self._write(DRIVER_PREFIX + driver, None)

    def leave(self) -> bool:
        """Record that this driver is about to end, and return whether no other one goes on; `close` follows later.

        Of drivers that end at the same time, each asking under the study's lock, the last one returns True.
        """
        self.refresh()
        others = [entry for driver, entry in self._others().items() if driver in self._live]
        self._register(leaving=True)
        return all(entry.get("leaving") for entry in others)

    def close(self) -> None:
        """Remove this driver's entry; its trials must have ended."""
        self.unregister(self.id)

    def _others(self) -> dict[str, Mapping[str, Any]]:
        """Return the entries of the other drivers by id."""
        entries = {
            key.removeprefix(DRIVER_PREFIX): entry
            for key, entry in self._read().items()
            if key.startswith(DRIVER_PREFIX) and entry
        }
        entries.pop(self.id, None)
        return entries

    def _rivals(self) -> dict[str, Mapping[str, Any]]:
        """Return the entries of the live drivers beside which this one must not run."""
        return {
            driver: entry
            for driver, entry in self._others().items()
            if (self._exclusive or entry["exclusive"])
            and _may_live(entry, is_silent=driver in self._silent)
            # An earlier search of this process may have left an entry
            and ProcessIdentity.from_tags(entry) != this_process()
        }

    def _wait_for_silence(self, has_lock: bool) -> None:
        """Wait until the drivers beside which this one must not run have been silent for long enough.

        Raises:
            UsageError: one of them is alive.
        """
        first: dict[str, int] = {}
        until = time.monotonic() + SILENCE_SECONDS
        while rivals := self._rivals():
            for driver, entry in rivals.items():
                has_changed = entry["heartbeat"] != first.get(driver, entry["heartbeat"])
                if has_changed or not has_lock or _liveness(entry) == "alive":
                    raise UsageError(_refusal(entry, self._exclusive))
                if driver not in first:
                    first[driver] = entry["heartbeat"]
                    log.info(
                        "this machine cannot see %s, which holds this study: watching for its heartbeat, for up to "
                        "%.0f s",
                        ProcessIdentity.from_tags(entry),
                        SILENCE_SECONDS,
                    )
            if time.monotonic() > until:
                self._silent = frozenset(rivals)
                return
            time.sleep(WATCH_PAUSE_SECONDS)
        if not has_lock:
            raise UsageError(BEGAN_AT_ONCE)

    def _settle(self) -> None:
        """Decide between drivers that start at the same time, however slow the storage is.

        Each has written its entry before it reads those of the others, so that of two at least one sees the other.
        Of exclusive drivers that see each other while both start, the one with the smaller id stays. It waits for the
        other's decision, which may have been made before the own entry could be seen (as in Lamport's bakery algorithm,
        Communications of the ACM 17, 1974).

        Raises:
            UsageError: another driver stays.
        """
        until = time.monotonic() + SETTLE_SECONDS
        while rivals := self._rivals():
            if any(not entry["starting"] or driver < self.id for driver, entry in rivals.items()) or (
                time.monotonic() > until
            ):
                raise UsageError(BEGAN_AT_ONCE)
            time.sleep(SETTLE_PAUSE_SECONDS)
        if self._exclusive:
            self._register()

    def _register(self, *, starting: bool = False, leaving: bool = False) -> None:
        self._renewed = seconds_since_boot()
        self._heartbeats += 1
        entry = announce_process().tags() | {
            "exclusive": self._exclusive,
            "starting": starting,
            "leaving": leaving,
            "heartbeat": self._heartbeats,
        }
        self._write(DRIVER_PREFIX + self.id, entry)


def _refusal(entry: Mapping[str, Any], exclusive: bool) -> str:
    """Return why a driver may not start beside the live one of an entry."""
    process = ProcessIdentity.from_tags(entry)
    if not exclusive:
        return f"drivers must all be shared: {process} holds this study alone"
    if not entry["exclusive"]:
        return "drivers must be shared, as other drivers share this study: -P drivers=shared joins them"
    return f"a study has one driver at a time: {process} holds this one; wait for it, stop it, or name another study"


def _may_live(entry: Mapping[str, Any], *, is_silent: bool) -> bool:
    """Return whether the driver of an entry may be alive."""
    state = _liveness(entry)
    return state == "alive" or (state == "unknown" and not is_silent)


def _liveness(entry: Mapping[str, Any]) -> Liveness:
    process = ProcessIdentity.from_tags(entry)
    return liveness(process) if process else "unknown"


@contextmanager
def lock_file(engine: Engine | None, study: str) -> Iterator[bool]:
    """Hold the lock file beside a study on sqlite and yield True, or yield False if another process holds it.

    It needs neither a heartbeat nor a common PID namespace. A study elsewhere has none, and yields True.
    """
    with ExitStack() as stack:
        has_lock = True
        if engine and engine.dialect.name == "sqlite" and engine.url.database:
            name = blake2b(study.encode(), digest_size=8).hexdigest()
            # the folder may belong to another user, or its file system have no locks
            with suppress(OSError):
                has_lock = stack.enter_context(try_lock(Path(f"{engine.url.database}.{name}.lock"), remove=True))
        yield has_lock


@dataclass
class LockLease:
    """A time for which a lock was held."""

    # Whether the server went away meanwhile, so that another process may have held the lock too; known at the end
    lost: bool = False


class AdvisoryLock:
    """A lock in a PostgreSQL database that one process at a time holds, until it is gone.

    It is an advisory lock (PostgreSQL 15, 13.3.5), held by a connection of its own.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        # AUTOCOMMIT, since the connection would otherwise sit in an open transaction while it holds the lock
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._key = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)

    @contextmanager
    def locked(self) -> Iterator[LockLease]:
        """Hold the lock while the block runs; whether it was lost meanwhile is known after that."""
        lease = LockLease()
        connection = retry_storage(self._acquire, self._engine.url.render_as_string(hide_password=False))
        try:
            yield lease
        finally:
            lease.lost = not self._release(connection)

    def _acquire(self) -> Connection:
        connection = self._engine.connect()
        try:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": self._key})
        except BaseException:
            # Not back to the pool, where it might go on holding the lock
            connection.invalidate()
            connection.close()
            raise
        return connection

    def _release(self, connection: Connection) -> bool:
        """Release the lock and return whether it was still held."""
        try:
            return bool(connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": self._key}).scalar())
        except UNAVAILABLE:
            return False
        finally:
            connection.close()
