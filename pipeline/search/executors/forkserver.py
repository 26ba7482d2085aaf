"""Python's fork server with the slow imports done once, so that a process starts in hundredths of a second."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from pipeline.runtime.temporary_environment import temporary_environment

context: ForkServerContext = multiprocessing.get_context("forkserver")

# Blocked in the server, which ends with its driver; the processes that it forks may unblock them
BLOCKED_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def start(modules: Sequence[str], environment: Mapping[str, str | None], log: Path) -> None:
    """Start the server unless it runs; it imports the modules while the caller continues.

    Args:
        modules: names of the modules to import.
        environment: changes to the environment of the server and of its processes, which see no later change of this
            process's environment; None removes a variable.
        log: file that receives what the imports write.
    """
    context.set_forkserver_preload(list(modules))
    # The server does not get this process's sys.path, and would silently skip modules that it does not find.
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    with temporary_environment({**environment, "PYTHONPATH": path}), _redirected_stderr(log):
        # The server's start starts this too, and unblocks SIGINT and SIGTERM when it does (Python 3.11).
        resource_tracker.ensure_running()
        with _blocked_signals():
            forkserver.ensure_running()


def stop() -> None:
    """Stop the server, which must have no processes left, and free its memory."""
    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        # else this call would wait until all is imported, which takes seconds
        os.kill(server._forkserver_pid, signal.SIGKILL)
    # without this call it would run for as long as this process
    server._stop()


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Block signals in this process and in all processes started meanwhile.

    The server inherits the blocked signals. Otherwise Ctrl-C in the terminal would interrupt its imports.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _redirected_stderr(log: Path) -> Iterator[None]:
    """Redirect file descriptor 2 of this process, and of the processes that it starts, to the log."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
