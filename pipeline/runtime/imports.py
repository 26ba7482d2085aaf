"""Imports that take seconds: quiet, without collecting garbage, and never interrupted in the middle."""

import gc
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.runtime.signals import handled_by
from pipeline.runtime.streams import captured_stderr


@contextmanager
def slow_imports() -> Iterator[None]:
    """Context manager: capture file descriptor 2, and let a signal that asks to stop wait, until the imports are done.

    TensorFlow's C++ writes start-up lines whatever TF_CPP_MIN_LOG_LEVEL is; what was written is shown only if an
    exception is raised. A signal's exception could be caught by the library that is being imported. The million objects
    that TensorFlow and MLflow create stay: looking for garbage among them took 1.5 of 11.2 s of processor time, and
    0.6 s more in the collections after it. Keras does not find scikit-learn, which it would import, with SciPy, for
    wrappers that nothing here uses: 1.4 of 10.3 s.
    """
    # imported here, as `--help` has to be fast
    import tempfile

    with _deferred_signals(), _no_garbage_collection(), _hidden("sklearn"), tempfile.TemporaryFile() as captured:
        try:
            with captured_stderr(captured.fileno()):
                yield
        except BaseException:
            captured.seek(0)
            sys.stderr.write(captured.read().decode(errors="replace"))
            raise


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Context manager: do not look for garbage until the block ends."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # collections to come need not look through what has been imported
        gc.freeze()
        if enabled:
            gc.enable()


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Context manager: a package that has not been imported yet appears as not installed until the block ends."""
    if package in sys.modules:
        yield
        return
    # which makes importing it raise ModuleNotFoundError
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if sys.modules[package] is None:
            del sys.modules[package]


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """Context manager: deliver the first signal that asks to stop when the block ends."""
    if threading.current_thread() is not threading.main_thread():
        # no other thread can set handlers, nor is interrupted by one
        yield
        return
    received: list[int] = []
    try:
        with handled_by(lambda number, frame: received.append(number)):
            yield
    finally:
        for number in received[:1]:
            signal.raise_signal(number)
