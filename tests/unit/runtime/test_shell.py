"""Commands that can be pasted."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runtime.shell import install_command, install_extra_command, mlflow_command, project_command
from tests.support.paths import ROOT


@pytest.fixture
def fake_environment(tmp_path, monkeypatch):
    """Return a function that makes a Python and scripts in a folder with a space, and this process's Python of it."""

    def make(*scripts):
        folder = tmp_path / "my env" / "bin"
        folder.mkdir(parents=True)
        for script in ("python", *scripts):
            shutil.copyfile("/bin/true", folder / script)
            (folder / script).chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(folder / "python"))
        return folder

    return make


def test_project_command_names_the_script_beside_python_and_quotes_words(fake_environment):
    folder = fake_environment("convmixer")
    command = project_command("train", "my recipe.yaml", "--depth", "8")
    assert shlex.split(command) == [str(folder / "convmixer"), "train", "my recipe.yaml", "--depth", "8"]
    assert subprocess.run(["/bin/sh", "-c", command], check=False).returncode == 0


def test_project_command_below_the_working_folder_is_relative(fake_environment, tmp_path, monkeypatch):
    fake_environment("convmixer")
    monkeypatch.chdir(tmp_path)
    assert project_command("doctor") == "'my env/bin/convmixer' doctor"


def test_project_command_without_the_script_runs_the_module(fake_environment):
    folder = fake_environment()
    assert shlex.split(project_command("doctor")) == [str(folder / "python"), "-m", "pipeline", "doctor"]


def test_project_command_runs_in_a_shell_without_this_environment_on_its_path():
    environment = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
    command = ["/bin/sh", "-c", project_command("train", "--help")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_mlflow_command_names_the_program_beside_python():
    (program, *words) = shlex.split(mlflow_command("ui", "--backend-store-uri", "sqlite:////a b"))
    assert Path(program).resolve() == Path(sys.executable).parent.resolve() / "mlflow"
    assert words == ["ui", "--backend-store-uri", "sqlite:////a b"]


def test_install_command_names_this_python_and_quotes_requirements(fake_environment):
    folder = fake_environment()
    words = shlex.split(install_command("tensorflow[and-cuda]==2.21.0"))
    assert words == [str(folder / "python"), "-m", "pip", "install", "tensorflow[and-cuda]==2.21.0"]


def test_install_extra_command_takes_the_versions_of_the_lock(fake_environment, tmp_path, monkeypatch):
    fake_environment()
    monkeypatch.chdir(tmp_path)
    assert install_extra_command("ray") == "'my env/bin/python' -m pip install -c requirements.lock -e '.[ray]'"
