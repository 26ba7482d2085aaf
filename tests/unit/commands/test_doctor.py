"""The command `doctor`: its lines, its exit code, and its run."""

import os
import subprocess
import sys

import mlflow
import pytest

from pipeline.commands import doctor, doctor_checks
from pipeline.commands.doctor_checks import CheckResult
from pipeline.config.commands import DoctorConfig
from pipeline.runtime.console import Console
from pipeline.tracking.tags import Tag
from tests.support.mlflow_project import run_project
from tests.support.paths import ROOT
from tests.support.stores import tracking_store


@pytest.fixture
def all_checks_ok(monkeypatch):
    """Let each check that takes long return one result with its name."""
    for name in ("packages", "environment", "cache", "store", "tensorflow"):
        monkeypatch.setattr(doctor_checks, f"check_{name}", lambda name=name: [CheckResult("ok", name)])
    monkeypatch.setattr(doctor_checks, "check_open_runs", list)
    monkeypatch.setattr(doctor_checks, "check_outbox", lambda resend: [])


def run_doctor():
    return doctor.run(DoctorConfig.build({}), Console())


def test_doctor_prints_a_line_for_each_result(all_checks_ok, capsys):
    assert run_doctor() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * 6 and lines[0].startswith("ok       Python 3.1")


def test_doctor_with_an_error_returns_1_and_runs_the_other_checks(all_checks_ok, monkeypatch, capsys):
    results = [CheckResult("error", "no space: delete files"), CheckResult("warning", "old")]
    monkeypatch.setattr(doctor_checks, "check_cache", lambda: results)
    assert run_doctor() == 1
    assert "error    no space: delete files\nwarning  old\nok       store" in capsys.readouterr().out


def test_doctor_with_warnings_only_returns_0(all_checks_ok, monkeypatch):
    monkeypatch.setattr(doctor_checks, "check_cache", lambda: [CheckResult("warning", "little space")])
    assert run_doctor() == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clsoe", "x"], "unknown setting 'clsoe'; did you mean close?"),
        (["close=x"], "settings are given as --name value, got 'close=x'"),
        (["--close", "a,a"], "close must be one or more with commas between, each once or none, got 'a,a'"),
    ],
)
def test_doctor_with_an_invalid_flag_is_refused_before_mlflow_is_imported(words, message):
    code = (
        "import sys; from pipeline.commands.main import run\n"
        f"code = run(['doctor', *{words}]); print('mlflow' in sys.modules, code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "False 2\n"
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


def test_doctor_started_by_mlflow_run_names_and_finishes_its_run(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with tracking_store(tmp_path, "doctor") as uri:
        result = run_project(uri, "doctor", entry_point="doctor")
        assert result.succeeded, result.stdout + result.stderr
        assert "ok       TensorFlow " in result.stdout and "error    " not in result.stdout
        (run,) = mlflow.search_runs(experiment_names=["doctor"], output_format="list")
        assert (run.info.run_name, run.info.status, run.data.tags[Tag.ROLE]) == ("doctor", "FINISHED", "doctor")
        assert os.listdir(tmp_path / "artifacts")
