"""The processor: its name, what it can do, and the library that TensorFlow is to use on it."""

import ctypes
import os
import platform
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_BYTES = 2**30  # bytes; a larger tensor is still mapped and unmapped on its own
NEVER = 2**31 - 1


def tune_malloc() -> bool:
    """Keep freed tensors for the next ones; whether the C library could be told so (glibc's can).

    By default glibc maps every block of 32 MiB or more anew and the kernel clears it page by page, and one activation
    of ConvMixer-256/8 at batch 128 is just that large: on two cores of a virtual machine it was half of all time.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # musl
        return False
    return bool(library.mallopt(M_MMAP_THRESHOLD, LARGEST_BYTES) and library.mallopt(M_TRIM_THRESHOLD, NEVER))


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


LINUX_FILE = "/proc/cpuinfo"
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


def processor_name() -> str:
    """The processor's own name, where the system tells it."""
    return _line("model name") or platform.processor() or platform.machine()


def has_bfloat16() -> bool:
    """Whether it multiplies bfloat16; False where the system does not tell."""
    return not BFLOAT16_FLAGS.isdisjoint(_line("flags").split())


def prefer_onednn() -> None:
    """Have TensorFlow take oneDNN's kernels on x86, unless TF_ENABLE_ONEDNN_OPTS says otherwise; before its import.

    By itself it takes them only where the processor has AVX-512 VNNI or newer. With AVX2 alone, too, a depthwise
    convolution costs half and the rest no more.
    """
    if platform.machine().lower() in {"x86_64", "amd64"}:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def run_operations_serially() -> None:
    """Have TensorFlow run operations one after the other, each on all cores, unless TF_NUM_INTEROP_THREADS is set.

    It is as fast as several at once. XLA's CPU compiler, which TensorFlow would else run several times at once where a
    model's first step needs several programs, has crashed in that (TensorFlow 2.21). Call before a device is touched.
    """
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")


def _line(start: str) -> str:
    """What Linux says of the first processor under this name, or nothing."""
    try:
        with open(LINUX_FILE, encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(start))
    except (OSError, StopIteration):
        return ""
