"""Tests of what this machine can tell of the process that is to begin a run that `mlflow run` opened."""

import getpass
import os
import subprocess
import sys

import pytest

from pipeline.tracking.project_launcher import BACKEND, USER, launcher_liveness

RUN = "0123456789abcdef" * 2
STORE = "sqlite:////data/mlflow.db"
MINE = {USER: getpass.getuser(), BACKEND: "local"}


def waiting(*words, environ=None):
    """Start a process that waits for its input to be closed."""
    command = [sys.executable, "-c", "input()", *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | (environ or {}))


@pytest.mark.usefixtures("own_children")
@pytest.mark.parametrize(
    ("words", "environ"),
    [
        (["mlflow", "run", "."], {}),
        (["-m", "mlflow", "--env-file", "x", "run", "."], {}),
        ([], {"MLFLOW_RUN_ID": RUN}),  # what `mlflow run` has started, as pip for its environment or the program
        (["docker", "run", "-e", f"MLFLOW_RUN_ID={RUN}"], {}),
    ],
)
def test_launcher_is_alive_until_its_process_has_ended(words, environ):
    with waiting(*words, environ=environ):
        assert launcher_liveness(RUN, MINE, tracking_uri=STORE) == "alive"
    assert launcher_liveness(RUN, MINE, tracking_uri=STORE) == "dead"


@pytest.mark.usefixtures("own_children")
def test_launcher_is_no_process_of_another_run_or_program():
    with waiting("mlflow", "ui"), waiting(environ={"MLFLOW_RUN_ID": RUN[::-1]}):
        assert launcher_liveness(RUN, MINE, tracking_uri=STORE) == "dead"


@pytest.mark.usefixtures("own_children")
@pytest.mark.parametrize(
    ("tags", "uri"),
    [
        (MINE, "http://server:5000"),
        (MINE, "postgresql://server/mlflow"),
        (MINE | {USER: "somebody else"}, STORE),
        (MINE | {BACKEND: "kubernetes"}, STORE),
        ({}, STORE),
    ],
)
def test_launcher_that_may_be_elsewhere_is_unknown(tags, uri):
    assert launcher_liveness(RUN, tags, tracking_uri=uri) == "unknown"
