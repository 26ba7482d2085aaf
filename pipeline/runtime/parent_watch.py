"""Stop this process when the `mlflow run` that started it has ended, as nothing else would tell it."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runtime import signals

if TYPE_CHECKING:
    import psutil

POLL_SECONDS = 0.5
# `mlflow run` passes the id of the run that it opened in this variable, which it does not have itself
PROJECT_RUN_ID_ENV = "MLFLOW_RUN_ID"
REASON = "as `mlflow run`, which had started it, was gone"


@contextmanager
def stop_with_parent() -> Iterator[None]:
    """Context manager: request a stop when `mlflow run`, or a process between it and this one, has ended."""
    over = threading.Event()
    chain = ancestors_up_to_mlflow()

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            if not all(map(_is_alive, chain)):
                signals.stop(REASON)
                return

    if chain:
        threading.Thread(target=watch, name="ancestors", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def ancestors_up_to_mlflow() -> "list[psutil.Process]":
    """Return the processes from this one's parent, which may be a shell, to the Python that runs `mlflow run`.

    Returns:
        An empty list if no `mlflow run` started this process.
    """
    run_id = os.environ.get(PROJECT_RUN_ID_ENV)
    if not run_id:
        return []
    # imported here, as every command imports this module and `--help` has to be fast
    import psutil

    chain: list[psutil.Process] = []
    # a process may belong to another user, or end at this moment
    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            chain.append(process)
            if process.environ().get(PROJECT_RUN_ID_ENV) != run_id:
                return chain if "python" in Path(process.exe()).name else []
    return []


def is_resumed_by_mlflow() -> bool:
    """Return whether an `mlflow run --run-id` runs this process itself, and not a program that passed its variable on.

    MLflow starts the command of a project from a shell.
    """
    import psutil

    # a process may end at this moment
    with suppress(psutil.Error):
        *between, mlflow = ancestors_up_to_mlflow() or [psutil.Process()]
        command = mlflow.cmdline()
        asked = "run" in command and any(word.partition("=")[0] == "--run-id" for word in command)
        return asked and not any("python" in Path(process.exe()).name for process in between)
    return False


def _is_alive(process: "psutil.Process") -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
