"""Whether the `mlflow run` that opened a run may still begin it, where nothing has named its process.

MLflow leaves a run open for ever if its environment fails, or if it is killed before the program begins. Such a run
names its user and no host, so that only a store that one machine alone can reach says where its process was.
"""

import getpass
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from pipeline.runtime.parent_watch import PROJECT_RUN_ID_ENV
from pipeline.runtime.process import Liveness
from pipeline.runtime.urls import on_one_machine

USER: Final = "mlflow.user"
BACKEND: Final = "mlflow.project.backend"


def launcher_liveness(run_id: str, tags: Mapping[str, str], *, tracking_uri: str) -> Liveness:
    """Return whether a process of this machine may still begin a run that `mlflow run` opened.

    A program that opened it through MLflow's Python functions is not seen while it prepares an environment. That does
    no harm: the program opens the run again when it begins.

    Args:
        run_id: The run, in which nothing has begun.
        tags: Its tags.
        tracking_uri: Of the store that it is in.
    """
    if not on_one_machine(tracking_uri) or tags.get(BACKEND) != "local" or tags.get(USER) != _user():
        return "unknown"
    own = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    return (
        "alive"
        if any(_may_begin(process, run_id) for process in psutil.process_iter() if process.pid not in own)
        else "dead"
    )


def _user() -> str | None:
    """Return the name of this user, as MLflow writes it; None where it has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def _may_begin(process: psutil.Process, run_id: str) -> bool:
    """Return whether a process is an `mlflow run`, or was started by the one that opened this run."""
    try:
        words = process.cmdline()
        return _is_mlflow_run(words) or run_id in " ".join(words) or process.environ().get(PROJECT_RUN_ID_ENV) == run_id
    except psutil.Error:
        # it has ended, or is another user's
        return False


def _is_mlflow_run(words: Sequence[str]) -> bool:
    names = [Path(word).name for word in words]
    return "mlflow" in names and "run" in names[names.index("mlflow") :]
