"""Whether a process failed for want of memory: by its exception, its last words, or the kernel's count of kills."""

import re
from pathlib import Path

CGROUPS = Path("/proc/self/cgroup")
MOUNTS = Path("/sys/fs/cgroup")

SAYS_SO = re.compile(
    r"RESOURCE_EXHAUSTED|ResourceExhausted|OOM when allocating|OUT_OF_MEMORY|std::bad_alloc|\bout of memory\b",
    re.IGNORECASE,
)


def is_oom_message(text: str) -> bool:
    """Whether TensorFlow, XLA, CUDA or the C++ library complains of memory in this text."""
    return SAYS_SO.search(text) is not None


def is_oom_error(error: BaseException) -> bool:
    """Whether the exception, whatever its type, is about memory."""
    return isinstance(error, MemoryError) or is_oom_message(f"{type(error).__name__}: {error}")


def oom_kill_count() -> int:
    """How many processes the kernel has killed for memory, in this process's control group where that is told.

    On the whole machine otherwise, and 0 where neither is told: what counts is whether the number grows.
    """
    for file in (*_of_control_group(), Path("/proc/vmstat")):
        try:
            lines = file.read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def _of_control_group() -> list[Path]:
    """The files of version 2 and version 1 that may hold the count."""
    try:
        groups = [line.split(":", 2) for line in CGROUPS.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    two = [MOUNTS / path.lstrip("/") / "memory.events" for _, kind, path in groups if not kind]
    one = [
        MOUNTS / "memory" / path.lstrip("/") / "memory.oom_control"
        for _, kind, path in groups
        if "memory" in kind.split(",")
    ]
    inside = [
        MOUNTS / "memory.events",
        MOUNTS / "memory" / "memory.oom_control",
    ]  # as a container sees its own
    return [*two, *one, *inside]
