"""The doctor's command line, started as people start it."""

import os
import subprocess
import sys

import mlflow
import pytest

from pipeline.commands import doctor, doctor_checks
from pipeline.commands.doctor_checks import CheckResult
from pipeline.runtime.urls import WAITING
from pipeline.tracking.tags import Tag
from tests.support.paths import ROOT
from tests.support.stores import environment, tracking_store


@pytest.fixture
def well(monkeypatch):
    """Everything that is checked is well."""
    for module, name in (
        (doctor_checks, "packages"),
        (doctor_checks, "cache"),
        (doctor_checks, "store"),
        (doctor_checks, "computing"),
    ):
        monkeypatch.setattr(module, name, lambda name=name: [CheckResult("ok", name)])
    monkeypatch.setattr(doctor_checks, "check_open_runs", list)
    monkeypatch.setattr(doctor_checks, "check_outbox", list)
    for name in WAITING:  # which are set in this process
        monkeypatch.setenv(name, "1")


def test_each_finding_is_a_line(well, capsys):
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * 5 and lines[0].startswith("ok       Python 3.11")


def test_what_is_broken_is_the_exit_code_and_stops_no_other_check(well, monkeypatch, capsys):
    monkeypatch.setattr(
        doctor_checks, "check_cache", lambda: [CheckResult("broken", "no room: make some"), CheckResult("look", "old")]
    )
    assert doctor.main([]) == 1
    assert "broken   no room: make some\nlook     old\nok       store" in capsys.readouterr().out


def test_what_is_only_to_be_looked_at_is_no_failure(well, monkeypatch):
    monkeypatch.setattr(doctor_checks, "check_cache", lambda: [CheckResult("look", "little room")])
    assert doctor.main([]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--clsoe", "x"], "unknown setting 'clsoe'; did you mean close?"),
        (["close=x"], "settings are given as --name value, got 'close=x'"),
        (["--close", "a,a"], "close must be one or more with commas between, each once or none, got 'a,a'"),
    ],
)
def test_a_flag_that_cannot_be_used_is_refused_before_mlflow_is_imported(words, said):
    code = (
        "import sys; from pipeline.commands.main import run\n"
        f"code = run(['doctor', *{words}]); print('mlflow' in sys.modules, code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "False 2\n"
    assert done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1


def test_mlflow_run_leaves_a_run_that_is_named_and_finished(tmp_path):
    with tracking_store(tmp_path, "doctor") as uri:
        command = ["mlflow", "run", str(ROOT), "-e", "doctor", "--env-manager", "local"]
        environ = environment(uri, "doctor") | {"CUDA_VISIBLE_DEVICES": "-1"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ok       TensorFlow " in done.stdout and "broken" not in done.stdout
        (run,) = mlflow.search_runs(experiment_names=["doctor"], output_format="list")
        assert (run.info.run_name, run.info.status, run.data.tags[Tag.ROLE]) == ("doctor", "FINISHED", "doctor")
        assert os.listdir(tmp_path / "artifacts")
