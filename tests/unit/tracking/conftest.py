"""What several tests of tracking use."""

import mlflow
import psutil
import pytest


@pytest.fixture
def opened_by_mlflow(store, monkeypatch):
    """A run as `mlflow run` leaves it to the program: open, with the parameters as they were typed."""
    run = mlflow.MlflowClient().create_run(mlflow.get_experiment_by_name("mine").experiment_id)
    mlflow.MlflowClient().log_param(run.info.run_id, "learning_rate", "1e-3")
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    return run.info.run_id


@pytest.fixture
def own_children(monkeypatch):
    """Show the processes of this test alone, as others on this machine may be `mlflow run` too."""
    monkeypatch.setattr(psutil, "process_iter", lambda: psutil.Process().children(recursive=True))
