"""Capture standard error during imports: TensorFlow's C++ writes start-up lines whatever TF_CPP_MIN_LOG_LEVEL is."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def capture_stderr() -> Iterator[None]:
    """Context manager: capture file descriptor 2, and show what was written to it only if an exception is raised."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        except BaseException:
            captured.seek(0)
            os.write(stderr, captured.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
