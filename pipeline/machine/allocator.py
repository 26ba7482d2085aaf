"""Memory that the C library keeps between training steps instead of giving it back to the kernel each time."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 2**30  # bytes; a larger tensor is still mapped and unmapped on its own
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed tensors for the next ones; whether the C library could be told so (glibc's can).

    By default glibc maps every block of 32 MiB or more anew and the kernel clears it page by page, and one activation
    of ConvMixer-256/8 at batch 128 is just that large: on two cores of a virtual machine it was half of all time.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # musl
        return False
    return bool(library.mallopt(M_MMAP_THRESHOLD, LARGEST) and library.mallopt(M_TRIM_THRESHOLD, NEVER))
