"""Checkpoints of runs that have finished, in a real MLflow store."""

import mlflow
import pytest
from scripted import mlflow_store

from pipeline.checkpoints.checkpoints import folder_of
from pipeline.checkpoints.leftovers import clear_finished


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with mlflow_store(tmp_path):
        yield mlflow.MlflowClient()


def test_those_of_finished_runs_go_and_all_others_stay(client):
    experiment = mlflow.get_experiment_by_name("mine").experiment_id
    finished, failed, running = (client.create_run(experiment).info.run_id for _ in range(3))
    client.set_terminated(finished, "FINISHED")
    client.set_terminated(failed, "FAILED")
    others = [failed, running, "0" * 32]  # the last is another store's
    for run_id in (finished, *others):
        folder_of(run_id).mkdir(parents=True)
    clear_finished(client)
    assert not folder_of(finished).exists()
    assert all(folder_of(run_id).exists() for run_id in others)


def test_there_may_be_none(client):
    clear_finished(client)
