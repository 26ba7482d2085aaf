"""Tests of the run that `mlflow run` opened, in a real MLflow store."""

import os
import subprocess
import sys

import mlflow
import pytest

from pipeline.runtime.errors import Stopped, UsageError
from pipeline.runtime.process import this_process
from pipeline.tracking.project_run import ProjectRun, close_if_unused, fail_project_run
from pipeline.tracking.tags import Tag


@pytest.fixture
def run_id(client):
    return client.create_run(mlflow.get_experiment_by_name("mine").experiment_id).info.run_id


def found(run_id):
    return mlflow.get_run(run_id)


def test_fail_project_run_closes_it_with_the_reason(monkeypatch, run_id):
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    fail_project_run("depth must be more")
    assert found(run_id).info.status == "FAILED"
    assert (found(run_id).data.tags[Tag.OUTCOME], found(run_id).data.tags[Tag.OUTCOME_REASON]) == (
        "failed",
        "depth must be more",
    )


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        ("patch_size must divide the image side: 8x8 pixels, got patch_size=3", "refused: patch_size"),
        ("there is no recipe flowers", "refused: there is no recipe flowers"),
    ],
)
def test_fail_project_run_names_it_after_what_was_refused(monkeypatch, run_id, reason, name):
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    fail_project_run(reason)
    assert found(run_id).info.run_name == name
    assert found(run_id).data.tags[Tag.DESCRIPTION] == reason


def test_fail_project_run_keeps_the_name_that_a_person_gave(monkeypatch, client, run_id):
    client.set_tag(run_id, Tag.RUN_NAME, "mine")
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    fail_project_run("depth must be more")
    assert found(run_id).info.run_name == "mine"


def test_fail_project_run_leaves_a_run_that_has_begun(monkeypatch, client, run_id):
    client.set_tag(run_id, "role", "run")
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    fail_project_run("depth must be more")
    assert found(run_id).info.status == "RUNNING"


def test_fail_project_run_without_a_project_run_raises_nothing(monkeypatch, store):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    fail_project_run("depth must be more")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    fail_project_run("depth must be more")


@pytest.mark.parametrize(
    ("error", "status", "ended", "reason"),
    [
        (UsageError("dataset must be there"), "FAILED", "failed", "dataset must be there"),
        (Stopped(15), "KILLED", "stopped", "by SIGTERM"),
    ],
)
def test_close_if_unused_after_an_error_closes_the_project_run(
    client, run_id, monkeypatch, error, status, ended, reason
):
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(type(error)), close_if_unused(ProjectRun.find()):
        raise error
    tags = found(run_id).data.tags
    assert (found(run_id).info.status, tags[Tag.OUTCOME], tags[Tag.OUTCOME_REASON]) == (status, ended, reason)


def test_close_if_unused_leaves_a_claimed_run_open(client, run_id, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(ZeroDivisionError), close_if_unused(ProjectRun.find()):
        ProjectRun.find().claim()
        1 / 0  # noqa: B018
    assert found(run_id).info.status == "RUNNING"


def test_close_if_unused_refuses_a_run_in_which_something_has_begun_and_leaves_it(client, run_id, monkeypatch):
    client.set_tag(run_id, Tag.ROLE, "report")
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    before = found(run_id).to_dictionary()
    message = (
        f"MLFLOW_RUN_ID must name a run in which nothing has begun, got {run_id} ({before['info']['run_name']}), which "
        "is RUNNING as a report: unset MLFLOW_RUN_ID for a new run, or resume a training with resume=RUN_ID"
    )
    with pytest.raises(UsageError) as refused, close_if_unused(ProjectRun.find()):
        raise AssertionError
    assert str(refused.value) == message
    assert found(run_id).to_dictionary() == before


def test_close_if_unused_names_this_process_in_the_run_and_leaves_it_open(run_id, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with close_if_unused(ProjectRun.find()):
        assert this_process().tags().items() <= found(run_id).data.tags.items()
    assert found(run_id).info.status == "RUNNING"


def test_close_if_unused_without_a_project_run_lets_errors_pass():
    with pytest.raises(ZeroDivisionError), close_if_unused(None):
        1 / 0  # noqa: B018


def test_fail_project_run_leaves_a_run_that_has_ended(monkeypatch, client, run_id):
    client.set_tag(run_id, Tag.OUTCOME, "stopped")
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    fail_project_run("depth must be more")
    assert found(run_id).data.tags[Tag.OUTCOME] == "stopped" and found(run_id).info.status == "RUNNING"


def test_find_takes_an_empty_variable_for_none():
    assert ProjectRun.find({}) is None and ProjectRun.find({"MLFLOW_RUN_ID": ""}) is None
    assert ProjectRun.find({"MLFLOW_RUN_ID": "a"}) == ProjectRun("a")


def test_claim_hides_the_project_run_from_child_processes(monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "a" * 32)
    project_run = ProjectRun.find()
    assert not project_run.is_claimed()
    assert project_run.claim() == "a" * 32
    assert project_run.is_claimed() and ProjectRun.find() is None and "MLFLOW_RUN_ID" not in os.environ


def test_find_below_claims_a_project_run_that_is_the_other_run_itself(monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "1234")
    assert ProjectRun.find_below("5678") == ProjectRun("1234") == ProjectRun.find()
    assert ProjectRun.find_below("1234") is None and ProjectRun.find() is None


def test_project_run_module_imports_no_mlflow():
    code = "import sys, pipeline.tracking.project_run as one; one.fail_project_run(''); print('mlflow' in sys.modules)"
    environ = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
