"""The experiment that `--experiment` names, beside MLflow's variables."""

import re

import mlflow
import pytest

from pipeline.runtime.errors import UsageError
from pipeline.tracking.experiment import select_experiment


@pytest.fixture
def mine(store):
    return mlflow.get_experiment_by_name("mine").experiment_id


@pytest.mark.parametrize("environ", [{}, {"MLFLOW_EXPERIMENT_NAME": "mine"}])
def test_select_experiment_sets_the_variable_that_mlflow_reads(environ):
    select_experiment("mine", environ)
    assert environ == {"MLFLOW_EXPERIMENT_NAME": "mine"}


@pytest.mark.parametrize("name", ["", " "])
def test_select_experiment_without_a_name_is_refused(name):
    with pytest.raises(UsageError, match="^experiment must be the name of an experiment"):
        select_experiment(name, {})


@pytest.mark.parametrize("name", ["none", "None"])
@pytest.mark.parametrize("environ", [{}, {"MLFLOW_EXPERIMENT_NAME": "mine"}])
def test_select_experiment_none_leaves_it_to_the_variables(name, environ):
    before = dict(environ)
    select_experiment(name, environ)
    assert environ == before


def test_select_experiment_refuses_another_name_than_the_variable_s():
    environ = {"MLFLOW_EXPERIMENT_NAME": "yours"}
    message = "that MLFLOW_EXPERIMENT_NAME names, got 'mine' and 'yours'; unset MLFLOW_EXPERIMENT_NAME"
    with pytest.raises(UsageError, match=re.escape(message)):
        select_experiment("mine", environ)
    assert environ == {"MLFLOW_EXPERIMENT_NAME": "yours"}


def test_select_experiment_accepts_the_one_of_the_run_that_mlflow_run_opened(mine):
    run_id = mlflow.MlflowClient().create_run(mine).info.run_id
    for environ in ({"MLFLOW_RUN_ID": run_id, "MLFLOW_EXPERIMENT_ID": mine}, {"MLFLOW_EXPERIMENT_ID": mine}):
        select_experiment("mine", environ)
        assert "MLFLOW_EXPERIMENT_NAME" not in environ, "MLflow would refuse both"


def test_select_experiment_refuses_another_one_than_that_of_a_run_or_an_id(mine):
    run_id = mlflow.MlflowClient().create_run(mine).info.run_id
    with pytest.raises(UsageError, match=f"MLFLOW_RUN_ID names, got 'other' and {run_id} of 'mine'; give"):
        select_experiment("other", {"MLFLOW_RUN_ID": run_id})
    with pytest.raises(UsageError, match=f"got 'other' and {mine} of 'mine'; unset MLFLOW_EXPERIMENT_ID"):
        select_experiment("other", {"MLFLOW_EXPERIMENT_ID": mine})


def test_select_experiment_says_how_to_name_it_to_mlflow_run(mine):
    run_id = mlflow.MlflowClient().create_run(mine).info.run_id
    message = f"got 'two words' and {run_id} of 'mine'; give `mlflow run` --experiment-name 'two words'"
    with pytest.raises(UsageError, match=f"^experiment must be the one that .* {re.escape(message)}$"):
        select_experiment("two words", {"MLFLOW_RUN_ID": run_id})


def test_select_experiment_takes_an_empty_variable_for_none(mine):
    environ = {"MLFLOW_EXPERIMENT_NAME": "", "MLFLOW_RUN_ID": "", "MLFLOW_EXPERIMENT_ID": ""}
    select_experiment("other", environ)
    assert environ["MLFLOW_EXPERIMENT_NAME"] == "other"


def test_select_experiment_beside_a_run_that_the_store_does_not_hold_is_refused(store):
    with pytest.raises(UsageError, match=f"the tracking store must be there .*{'0' * 32}"):
        select_experiment("mine", {"MLFLOW_RUN_ID": "0" * 32})
