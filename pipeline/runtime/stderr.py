"""Imports without their start-up lines, which TensorFlow's C++ writes whatever TF_CPP_MIN_LOG_LEVEL says."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def capture_stderr() -> Iterator[None]:
    """Within it file descriptor 2 is kept back; what was written is shown only if an exception passes."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(stderr, kept.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
