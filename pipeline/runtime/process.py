"""Who a process is, so that another one can tell whether it still lives: host, boot, process id and start time."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

CLOCK_SECONDS = 5.0  # a clock that is corrected moves the time at which a process seems to have started
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True)
class ProcessIdentity:
    """A process of some host."""

    host: str
    boot: str  # changes when the host starts again; empty where the system does not tell
    namespace: str  # within which process ids mean something: a container has its own
    id: int
    started: float  # seconds since the epoch

    def tags(self) -> dict[str, str]:
        """What `told` reads."""
        return {
            "host": self.host,
            "host.boot": self.boot,
            "process.namespace": self.namespace,
            "process": str(self.id),
            "process.started": f"{self.started:.2f}",
        }

    def __str__(self) -> str:
        return f"process {self.id} on {self.host}"


def this_process() -> ProcessIdentity:
    """The process that asks."""
    me = psutil.Process()
    boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
    namespace = os.readlink(NAMESPACE) if NAMESPACE.is_symlink() else ""
    return ProcessIdentity(socket.gethostname(), boot, namespace, me.pid, me.create_time())


def from_tags(tags: Mapping[str, str]) -> ProcessIdentity | None:
    """The process that tags name, or None where they name none."""
    try:
        return ProcessIdentity(
            tags["host"],
            tags["host.boot"],
            tags["process.namespace"],
            int(tags["process"]),
            float(tags["process.started"]),
        )
    except (KeyError, ValueError):
        return None


def liveness(process: ProcessIdentity, *, heard: float) -> Literal["lives", "gone", "elsewhere"]:
    """Whether a process lives or is gone, as far as this host can tell; else it is elsewhere.

    Args:
        heard: when it last said that it lived, in seconds since the epoch. Later than this host's own start it cannot
            be of an earlier boot: another host bears the same name.
    """
    here = this_process()
    if process.host != here.host:
        return "elsewhere"
    if process.boot != here.boot:
        return "elsewhere" if heard > psutil.boot_time() + CLOCK_SECONDS else "gone"
    if process.namespace != here.namespace:
        return "elsewhere"
    return "lives" if is_running(process.id, process.started) else "gone"


def is_running(pid: int, started: float) -> bool:
    """Whether the process of this id that began at this time still runs: not ended, and its id not another's."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < CLOCK_SECONDS and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
