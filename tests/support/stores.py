"""What tests share that start the project as people do."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import mlflow


def environment(uri, experiment):
    """An activated environment whose MLflow variables are these alone: MLflow sets some in its own process too."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {
        **mine,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_EXPERIMENT_NAME": experiment,
    }


@contextmanager
def tracking_store(folder, experiment):
    """The URI of a store in a folder, made before several processes want it at once; this process uses it meanwhile."""
    uri = f"sqlite:///{folder}/mlflow.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment(experiment, artifact_location=str(folder / "artifacts"))
    yield uri
    mlflow.set_tracking_uri(before)
