"""What tests share that start the project as people do."""

import os
import sys
from pathlib import Path


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
