"""Python's fork server with the slow imports done once, so that a process starts in hundredths of a second."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

context: ForkServerContext = multiprocessing.get_context("forkserver")
# by the server, which ends with its driver; its processes may unblock them
BLOCKED_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def start(modules: Sequence[str], environment: Mapping[str, str | None], log: Path) -> None:
    """Start the server unless it runs; it imports the modules while the caller goes on.

    Its processes see the server's environment, not what this process makes of its own later. None takes a variable
    away. What the imports write goes to the log.
    """
    context.set_forkserver_preload(list(modules))
    # the server does not get this process's sys.path, and would pass over modules that it does not find
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    with _environment({**environment, "PYTHONPATH": path}), _stderr(log), _blocked():
        forkserver.ensure_running()


def stop() -> None:
    """End the server, which must have no processes left, and give its memory back."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined] # else it stays for as long as this process


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _blocked() -> Iterator[None]:
    """Within it a signal waits, and never comes to processes started there: importing, Python would heed a Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _stderr(log: Path) -> Iterator[None]:
    """Within it what this process and those it starts write to file descriptor 2 goes to the log."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
