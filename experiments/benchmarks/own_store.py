"""A tracking store for a measurement alone, whatever experiment, run or server the user's variables name."""

import os

PREFIX = "MLFLOW_"


def with_store(uri: str, **variables: str) -> dict[str, str]:
    """Return this process's environment for one that logs to a store: without MLflow's variables, with others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return inherited | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"} | variables


def use_store(uri: str) -> None:
    """Let this process log to a store, with nothing else of what MLflow's variables said."""
    environment = with_store(uri)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
