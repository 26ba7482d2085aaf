"""Tracking stores in a folder, and the environment of processes that log to one."""

import os
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import fluent
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache


def environment(uri, experiment):
    """Return the variables of an activated environment with a tracking store and an experiment.

    No other MLflow variable of this process is passed on: MLflow sets some of its own.
    """
    others = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {
        **others,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_EXPERIMENT_NAME": experiment,
    }


def made_once(name, make):
    """Return a file of this process, or of all that have the same folder in EMPTY_DATABASES; make it if it is missing.

    Making the tables of a database takes seconds, copying it does not.
    """
    folder = Path(os.environ.get("EMPTY_DATABASES") or tempfile.mkdtemp())
    file = folder / name
    if not file.exists():
        unfinished = folder / f"{name}.{os.getpid()}"
        make(f"sqlite:///{unfinished}")
        unfinished.rename(file)
    return file


@cache
def empty_database():
    """Return the file of a tracking store without runs."""
    return made_once("mlflow.db", lambda uri: mlflow.MlflowClient(uri).search_experiments())


@contextmanager
def tracking_store(folder, experiment):
    """Make a tracking store with an experiment in a folder, use it in this process, and yield its URI."""
    file = Path(folder) / "mlflow.db"
    shutil.copy(empty_database(), file)
    with _used(file) as uri:
        mlflow.create_experiment(experiment, artifact_location=str(Path(folder) / "artifacts"))
        yield uri


@contextmanager
def copied_store(source, folder):
    """Copy a tracking store and its artifacts from one folder to another, use the copy, and yield its URI."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    file = Path(folder) / "mlflow.db"
    with closing(sqlite3.connect(file)) as database:
        # where artifacts are
        statements = "\n".join(database.iterdump()).replace(str(source), str(folder))
    file.unlink()
    with closing(sqlite3.connect(file)) as database:
        database.executescript(statements)
    # MLflow remembers by a run's id where its artifacts are
    _artifact_repos_cache.clear()
    with _used(file) as uri:
        yield uri


@contextmanager
def _used(file):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{file}")
    with pytest.MonkeyPatch.context() as patch:
        # What `mlflow.set_experiment` sets, also for the processes that a test starts, is for this store alone
        patch.setattr(fluent, "_active_experiment_id", None)
        patch.setenv("MLFLOW_EXPERIMENT_ID", "")
        patch.delenv("MLFLOW_EXPERIMENT_ID")
        try:
            yield mlflow.get_tracking_uri()
        finally:
            mlflow.set_tracking_uri(before)
