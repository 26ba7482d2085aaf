"""Tests of what this machine can tell of the process that is to begin a run that `mlflow run` opened."""

import getpass
import os
import subprocess
import sys

import psutil
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


@pytest.mark.usefixtures("own_children")
def test_launcher_of_a_run_without_a_user_is_looked_for_where_this_process_has_no_name(monkeypatch):
    def nameless():
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert launcher_liveness(RUN, MINE, tracking_uri=STORE) == "unknown"
    assert launcher_liveness(RUN, {BACKEND: "local"}, tracking_uri=STORE) == "dead"


def test_launcher_is_neither_this_process_nor_one_above_it(monkeypatch):
    here = psutil.Process()
    monkeypatch.setattr(psutil, "process_iter", lambda: [here, *here.parents()])
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: ["mlflow", "run", "."])
    assert launcher_liveness(RUN, MINE, tracking_uri=STORE) == "dead"


def test_launcher_is_no_process_that_ends_meanwhile(monkeypatch):
    def gone(self):
        raise psutil.NoSuchProcess(1)

    with waiting("mlflow", "run") as process:
        monkeypatch.setattr(psutil, "process_iter", lambda: [psutil.Process(process.pid)])
        monkeypatch.setattr(psutil.Process, "cmdline", gone)
        assert launcher_liveness(RUN, MINE, tracking_uri=STORE) == "dead"


@pytest.mark.parametrize("words", [["run", "mlflow"], ["mlflow"], ["run"], ["/usr/bin/mlflow", "ui", "--run"]])
def test_launcher_has_the_word_run_behind_mlflow(monkeypatch, words):
    with waiting() as process:
        monkeypatch.setattr(psutil, "process_iter", lambda: [psutil.Process(process.pid)])
        monkeypatch.setattr(psutil.Process, "cmdline", lambda self: words)
        assert launcher_liveness(RUN, MINE, tracking_uri=STORE) == "dead"
        monkeypatch.setattr(psutil.Process, "cmdline", lambda self: ["/usr/bin/mlflow", "run", "."])
        assert launcher_liveness(RUN, MINE, tracking_uri=STORE) == "alive"
