"""What is said, and where, of a command that cannot be carried out."""

import mlflow
import pytest
from scripted import mlflow_store

from pipeline.errors import UsageError
from pipeline.refusal import refuse


@pytest.fixture
def run_id(tmp_path):
    with mlflow_store(tmp_path):
        yield mlflow.MlflowClient().create_run("0").info.run_id


def test_it_is_one_line_and_the_exit_code_is_two(monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    assert refuse(UsageError("depth must be more")) == 2
    assert capsys.readouterr().err == "error: depth must be more\n"


def test_it_is_said_in_the_run_that_mlflow_run_opened(monkeypatch, run_id):
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    refuse(UsageError("depth must be more"))
    assert mlflow.get_run(run_id).data.tags["ended.reason"] == "depth must be more"
