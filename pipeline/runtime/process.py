"""The identity of a process, by which others can tell whether it is alive, whatever the clocks say."""

import fcntl
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Literal, Self

from pipeline.runtime.files import cache_folder, make_private, try_lock

Liveness = Literal["alive", "dead", "unknown"]

PROC = Path("/proc")
BOOT_ID = PROC / "sys/kernel/random/boot_id"
# the time namespace shifts the time since boot
NAMESPACES = (PROC / "self/ns/pid", PROC / "self/ns/time")
ENDED_STATES = {b"Z", b"X"}  # a zombie, and a process that is being removed

LOCKS = "processes"  # folder in the cache of the lock files of processes
LOCK_DAYS = 30  # for which the lock file of a process that has been killed is kept

# Names of the tags of a process.
HOST, HOST_BOOT = "convmixer.host", "convmixer.host.boot"
PROCESS, PROCESS_NAMESPACE, PROCESS_STARTED = (
    "convmixer.process",
    "convmixer.process.namespace",
    "convmixer.process.started",
)


@dataclass(frozen=True)
class ProcessIdentity:
    """A process on some host; nothing of it depends on a clock that can be set."""

    host: str
    boot: str  # changes when the host restarts; empty if the system does not provide it
    namespace: str  # of process ids and of the time since boot: a container may have its own
    id: int
    started: int  # clock ticks since boot; without /proc microseconds, as the kernel noted them at the start

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self | None:
        """Return the process that tags name, or None if they name none."""
        try:
            return cls(
                tags[HOST],
                tags[HOST_BOOT],
                tags[PROCESS_NAMESPACE],
                int(tags[PROCESS]),
                int(tags[PROCESS_STARTED]),
            )
        except (KeyError, ValueError):
            return None

    def tags(self) -> dict[str, str]:
        """Return the tags that `from_tags` reads."""
        return {
            HOST: self.host,
            HOST_BOOT: self.boot,
            PROCESS_NAMESPACE: self.namespace,
            PROCESS: str(self.id),
            PROCESS_STARTED: str(self.started),
        }

    def __str__(self) -> str:
        return f"process {self.id} on {self.host}"


def this_process() -> ProcessIdentity:
    """Return the identity of the calling process, as it was found at the first call."""
    return _this_process(os.getpid())


def announce_process() -> ProcessIdentity:
    """Return the identity of the calling process, and hold its lock file until it ends.

    The lock shows processes of other PID namespaces on this host, and those after a restart of the host, that this one
    is alive or dead, if they have the same cache.
    """
    _hold_lock(os.getpid())
    return this_process()


def process_of(pid: int) -> ProcessIdentity:
    """Return the identity of a live process of this PID namespace.

    Raises:
        ProcessLookupError: There is none.
    """
    started = _start_of(pid)
    if started is None:
        raise ProcessLookupError(pid)
    boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
    namespace = " ".join(os.readlink(path) for path in NAMESPACES if path.is_symlink())
    return ProcessIdentity(socket.gethostname(), boot, namespace, pid, started)


def liveness(process: ProcessIdentity) -> Liveness:
    """Return whether a process is alive or dead, or `unknown` if this process cannot tell."""
    here = this_process()
    if (process.host, process.boot, process.namespace) != (here.host, here.boot, here.namespace) or not _sees_itself():
        return _liveness_by_lock(process)
    try:
        return "alive" if _start_of(process.id) == process.started else "dead"
    except PermissionError:
        return _liveness_by_lock(process)


@cache
def _this_process(pid: int) -> ProcessIdentity:
    return process_of(pid)


def _sees_itself() -> bool:
    """Return whether /proc, where there is one, is that of this process's own PID namespace."""
    return not PROC.joinpath("self").exists() or os.readlink(PROC / "self") == str(os.getpid())


def _start_of(pid: int) -> int | None:
    """Return when a process of this PID namespace started, or None if it has ended.

    Raises:
        PermissionError: The process is another user's, and /proc hides it.
    """
    if not PROC.joinpath("self").exists():
        return _start_without_proc(pid)
    # of this process also where /proc is that of another PID namespace
    folder = PROC / ("self" if pid == os.getpid() else str(pid))
    try:
        # the name of the program stands in parentheses and may have any characters
        state, *fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
        return None
    # starttime is the 22nd value of proc(5), the state the third
    return None if state in ENDED_STATES else int(fields[18])


def _start_without_proc(pid: int) -> int | None:
    """Return what `_start_of` does on macOS and BSD."""
    import psutil

    try:
        process = psutil.Process(pid)
        # by which psutil itself recognizes a process: unlike create_time() it is not moved with the clock
        return None if process.status() == psutil.STATUS_ZOMBIE else int(1e6 * process._ident[1])  # type: ignore[attr-defined]
    except psutil.NoSuchProcess:
        return None


def _lock_file(process: ProcessIdentity) -> Path:
    name = blake2b(repr(process).encode(), digest_size=16).hexdigest()
    return cache_folder(LOCKS, name)


@cache
def _hold_lock(pid: int) -> int | None:
    """Take the lock of this process and return its file descriptor; None if the cache takes no locks."""
    file = _lock_file(_this_process(pid))
    try:
        make_private(file.parent)
        _remove_old_locks(file.parent)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None
    return descriptor


def _remove_old_locks(folder: Path) -> None:
    """Remove the lock files of processes that ended long ago; without one, a process is unknown instead of dead."""
    for file in folder.iterdir():
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > 86_400 * LOCK_DAYS:
                with try_lock(file) as locked:
                    if locked:
                        file.unlink()


def _liveness_by_lock(process: ProcessIdentity) -> Liveness:
    """Return whether a process holds its lock; `unknown` if this host cannot see its locks or it has none."""
    here = this_process()
    is_same_kernel = process.boot != "" and process.boot == here.boot
    # hosts that share a file system need not see each other's locks
    if not is_same_kernel and process.host != here.host:
        return "unknown"
    try:
        descriptor = os.open(_lock_file(process), os.O_RDONLY)
    except OSError:
        return "unknown"
    try:
        # shared, so that two processes that ask at once do not take each other for the process
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "alive"
    except OSError:
        return "unknown"
    else:
        return "dead"
    finally:
        os.close(descriptor)
