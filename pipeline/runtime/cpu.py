"""The CPU: its name, its cores and instructions, and how TensorFlow and malloc are set up for it."""

import ctypes
import os
import platform
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_BYTES = 2**30  # a larger tensor is still mapped and unmapped on its own
NEVER = 2**31 - 1


def tune_malloc() -> bool:
    """Let malloc keep the memory of freed tensors for the next ones, and return whether it can (glibc's can).

    By default glibc maps every block of 32 MiB or more anew, and the kernel clears it page by page. One activation of
    ConvMixer-256/8 at batch 128 is that large: on two cores of a virtual machine this took half of the training time.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # musl
        return False
    return bool(library.mallopt(M_MMAP_THRESHOLD, LARGEST_BYTES) and library.mallopt(M_TRIM_THRESHOLD, NEVER))


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


CPUINFO = "/proc/cpuinfo"
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


def processor_name() -> str:
    """Return the model name of the processor, or its architecture if the system does not provide the name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def has_bfloat16() -> bool:
    """Return whether the processor has bfloat16 instructions; False if the system does not provide its flags."""
    return not BFLOAT16_FLAGS.isdisjoint(_cpuinfo("flags").split())


def instructions() -> str:
    """Return the flags of the processor's instructions as the system lists them; empty if it does not."""
    # ARM's name for them is the second
    return _cpuinfo("flags") or _cpuinfo("Features")


def run_operations_serially() -> None:
    """Make TensorFlow run operations one after the other, each on all cores, unless TF_NUM_INTEROP_THREADS is set.

    This is as fast as several operations at a time. XLA's CPU compiler, which TensorFlow would otherwise run several
    times at once if the first step of a model needs several programs, has crashed when it ran so (TensorFlow 2.21).
    Call before any device is used.
    """
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")


def _cpuinfo(field: str) -> str:
    """Return a field of the first processor in /proc/cpuinfo, or an empty string."""
    try:
        with open(CPUINFO, encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return ""
