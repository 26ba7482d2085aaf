"""Detection of processes that ran out of memory: by exception, by output, and by the kernel's count of kills."""

import re
from pathlib import Path

from pipeline.runtime.text import one_line

CGROUPS = Path("/proc/self/cgroup")
MOUNTS = Path("/sys/fs/cgroup")

OOM_MESSAGE = re.compile(
    r"RESOURCE_EXHAUSTED|ResourceExhausted|OOM when allocating|OUT_OF_MEMORY|std::bad_alloc|\bout of memory\b"
    r"|ALLOC_FAILED|cannot allocate memory|(?:unable|failed) to allocate",
    re.IGNORECASE,
)


def is_oom_message(text: str) -> bool:
    """Return whether the text holds an out-of-memory message of TensorFlow, XLA, CUDA, NumPy or the C library."""
    return OOM_MESSAGE.search(text) is not None


def is_oom_error(error: BaseException) -> bool:
    """Return whether the exception, whatever its type, is about memory."""
    return isinstance(error, MemoryError) or is_oom_message(f"{type(error).__name__}: {error}")


def describe_oom(error: BaseException) -> str:
    """Return in a line what was too large for the memory, as far as the error says it."""
    lines = [line.strip() for line in str(error).splitlines()]
    # TensorFlow's errors begin with lines about the graph
    said = next((line for line in lines if is_oom_message(line)), "")
    return one_line(f"memory does not suffice ({said or type(error).__name__})", most=300)


def oom_kill_count() -> int:
    """Return how many processes the kernel has killed for memory.

    The count is that of this process's control group if the kernel keeps one, else that of the machine, else 0. Callers
    only look at whether it grows.
    """
    for file in (*_cgroup_files(), Path("/proc/vmstat")):
        try:
            lines = file.read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def _cgroup_files() -> list[Path]:
    """Return the files of control groups, version 2 and version 1, that may hold the count."""
    try:
        groups = [line.split(":", 2) for line in CGROUPS.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    version_2 = [MOUNTS / path.lstrip("/") / "memory.events" for _, controllers, path in groups if not controllers]
    version_1 = [
        MOUNTS / "memory" / path.lstrip("/") / "memory.oom_control"
        for _, controllers, path in groups
        if "memory" in controllers.split(",")
    ]
    # a container sees its own group at the root
    container = [MOUNTS / "memory.events", MOUNTS / "memory" / "memory.oom_control"]
    return [*version_2, *version_1, *container]
