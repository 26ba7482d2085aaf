"""Stops this process when the `mlflow run` that started it is gone, which nobody else would tell it."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from pipeline.runtime import signals

POLL_SECONDS = 0.5
# in which `mlflow run` names the run that it opened for a program; it has none itself
PROJECT_RUN_ID_ENV = "MLFLOW_RUN_ID"
GONE = "as `mlflow run`, which had started it, was gone"


@contextmanager
def stop_with_parent() -> Iterator[None]:
    """Within it this process is asked to stop when a process between it and `mlflow run`, or that, has ended."""
    over = threading.Event()
    chain = ancestors_up_to_mlflow()

    def work() -> None:
        while not over.wait(POLL_SECONDS):
            if not all(map(_lives, chain)):
                signals.stop(GONE)
                return

    if chain:
        threading.Thread(target=work, name="ancestors", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def ancestors_up_to_mlflow() -> list[psutil.Process]:
    """The processes from this one's parent, perhaps a shell, to the Python that opened the run; none without one."""
    run = os.environ.get(PROJECT_RUN_ID_ENV)
    chain: list[psutil.Process] = []
    with suppress(psutil.Error):  # of another user, or gone this moment
        for process in psutil.Process().parents() if run else []:
            chain.append(process)
            if process.environ().get(PROJECT_RUN_ID_ENV) != run:
                return chain if "python" in Path(process.exe()).name else []
    return []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
