"""The standard streams of the program: output is not vital, so that no fault of a stream ends a command."""

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from pipeline.runtime import interrupt

STDERR = 2


def tolerate_errors() -> None:
    """Make standard output and standard error take any text, and lose it where it cannot be written.

    A closed stream becomes one to /dev/null: otherwise the next file to be opened would get its number, and what a
    library prints.
    """
    for descriptor in (0, 1, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
    sys.stdout = _tolerant(sys.stdout, 1)
    sys.stderr = _tolerant(sys.stderr, STDERR)


def _tolerant(stream: TextIO | None, descriptor: int) -> io.TextIOWrapper:
    # what the encoding lacks is escaped, and so is what was no text when Python decoded it
    return io.TextIOWrapper(
        io.BufferedWriter(_TolerantFile(descriptor, "wb", closefd=False)),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


class _TolerantFile(io.FileIO):
    """A file whose errors are silent: a reader that has gone, a terminal that was closed, a full disk."""

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        try:
            # None: another program has set the pipe to non-blocking, and it is full
            while (written := super().write(data)) is None:
                select.select([], [self], [])
        except OSError:
            return size
        return written


@contextmanager
def captured_stderr(file: int) -> Iterator[None]:
    """Context manager: let what is written to file descriptor 2 go to another file."""
    sys.stderr.flush()
    before, interrupt.stderr_descriptor = interrupt.stderr_descriptor, os.dup(STDERR)
    os.dup2(file, STDERR)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(interrupt.stderr_descriptor, STDERR)
        os.close(interrupt.stderr_descriptor)
        interrupt.stderr_descriptor = before


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Context manager: drop what is written to file descriptor 2, such as what a library's C++ says of itself."""
    with open(os.devnull, "wb") as null, captured_stderr(null.fileno()):
        yield
