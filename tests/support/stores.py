"""Tracking stores in a folder, and the environment of processes that log to one."""

import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import mlflow


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


@cache
def empty_database():
    """Return the file of a tracking store without runs; making its tables takes seconds, copying it does not."""
    file = Path(tempfile.mkdtemp()) / "empty.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@contextmanager
def tracking_store(folder, experiment):
    """Make a tracking store with an experiment in a folder, use it in this process, and yield its URI."""
    file = Path(folder) / "mlflow.db"
    shutil.copy(empty_database(), file)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{file}")
    mlflow.create_experiment(experiment, artifact_location=str(Path(folder) / "artifacts"))
    try:
        yield mlflow.get_tracking_uri()
    finally:
        mlflow.set_tracking_uri(before)
