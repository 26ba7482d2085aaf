"""The identity of a process, by which another one can tell whether it is alive: host, boot, process id, start time."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import psutil

CLOCK_SECONDS = 5.0  # setting the clock right moves the time at which a process seems to have started
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")

# Names of the tags of a process.
HOST, HOST_BOOT = "host", "host.boot"
PROCESS, PROCESS_NAMESPACE, PROCESS_STARTED = "process", "process.namespace", "process.started"


@dataclass(frozen=True)
class ProcessIdentity:
    """A process on some host."""

    host: str
    boot: str  # changes when the host restarts; empty if the system does not provide it
    namespace: str  # of process ids: a container has its own
    id: int
    started: float  # seconds since the epoch

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self | None:
        """Return the process that tags name, or None if they name none."""
        try:
            return cls(
                tags[HOST],
                tags[HOST_BOOT],
                tags[PROCESS_NAMESPACE],
                int(tags[PROCESS]),
                float(tags[PROCESS_STARTED]),
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
            PROCESS_STARTED: f"{self.started:.2f}",
        }

    def __str__(self) -> str:
        return f"process {self.id} on {self.host}"


def this_process() -> ProcessIdentity:
    """Return the identity of the calling process."""
    process = psutil.Process()
    boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
    namespace = os.readlink(NAMESPACE) if NAMESPACE.is_symlink() else ""
    return ProcessIdentity(socket.gethostname(), boot, namespace, process.pid, process.create_time())


def liveness(process: ProcessIdentity, *, last_seen: float) -> Literal["alive", "dead", "unknown"]:
    """Return whether a process is alive or dead, or `unknown` if this host cannot tell.

    Args:
        process: the process.
        last_seen: time of its last heartbeat, in seconds since the epoch. If that is after this host's boot, the
            process is not one of an earlier boot: then another host has the same name.
    """
    here = this_process()
    if process.host != here.host:
        return "unknown"
    if process.boot != here.boot:
        return "unknown" if last_seen > psutil.boot_time() + CLOCK_SECONDS else "dead"
    if process.namespace != here.namespace:
        return "unknown"
    return "alive" if is_running(process.id, process.started) else "dead"


def is_running(pid: int, started: float) -> bool:
    """Return whether the process with this id and start time is running: not ended, nor replaced under its id."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < CLOCK_SECONDS and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
