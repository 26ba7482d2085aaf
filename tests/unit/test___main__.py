"""Starting the program: Ctrl-C at any moment of it, and a Python that does not suffice, end it in one line."""

import ast
import os
import signal
import subprocess
import sys
import tomllib

import pytest
from packaging.specifiers import SpecifierSet

from pipeline.__main__ import OLDEST_PYTHON, REMEDY
from tests.support.paths import ROOT

# Presses Ctrl-C when a module is about to be imported
PROGRAM = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["AT"]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from pipeline.__main__ import main
main()
"""


def interrupt(at, *words, folder):
    environ = {**os.environ, "AT": at, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ("pipeline.commands.main", ["train", "digits"]),
        ("logging", ["train", "digits"]),
        ("argparse", ["train", "--help"]),
        ("pydantic", ["evaluate", "latest"]),
        ("pipeline.commands.train", ["train", "digits"]),
        ("numpy", ["train", "digits"]),
        ("numpy", ["search", "smoke"]),
        ("optuna", ["search", "smoke"]),
        ("pandas", ["report", "Default"]),
        ("mlflow", ["doctor"]),
    ],
)
def test_ctrl_c_while_a_command_starts_ends_it_in_one_line(at, words, tmp_path):
    done = interrupt(at, *words, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped by SIGINT\n")


# Begins as a Python of that version, or without that module
OTHER_PYTHON = """
import os, sys
if "WITHOUT" in os.environ:
    sys.modules[os.environ["WITHOUT"]] = None
if "VERSION" in os.environ:
    sys.version_info = (*map(int, os.environ["VERSION"].split(".")), "final", 0)
from pipeline.__main__ import main
main()
"""


def start(*command, folder, **variables):
    places = {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    # with no decoded images, for which scikit-learn is not needed
    places["XDG_CACHE_HOME"] = str(folder / "cache")
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | places | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("words", [["train", "digits"], ["search", "smoke"], ["doctor"], ["report", "--help"]])
def test_python_without_packages_is_refused_in_one_line(words, tmp_path):
    """As `mlflow run --env-manager local` starts the system's Python where no environment is activated."""
    done = start("-S", "-m", "pipeline", *words, folder=tmp_path)
    assert done.stderr.startswith(
        f"error: Python must have the packages of this project, got {sys.executable} without "
    )
    assert done.stderr.endswith(f"; {REMEDY}\n") and done.stderr.count("\n") == 1
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("package", "words"),
    [("psutil", ["train", "digits"]), ("sklearn", ["train", "digits"]), ("optuna", ["search", "smoke"])],
)
def test_package_that_a_command_misses_while_it_runs_is_named_in_one_line(package, words, tmp_path):
    done = start("-c", OTHER_PYTHON, *words, folder=tmp_path, WITHOUT=package)
    assert done.stderr.endswith(f" without {package}; {REMEDY}\n") and done.stderr.count("\n") == 1
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("module", ["pipeline.commands.train", "numpy.linalg", "json"])
def test_missing_module_of_the_program_of_an_installed_package_or_of_python_shows_its_traceback(module, tmp_path):
    done = start("-c", OTHER_PYTHON, "train", "digits", folder=tmp_path, WITHOUT=module)
    assert done.returncode == 1 and done.stderr.startswith("Traceback")
    assert f"ModuleNotFoundError: import of {module} halted" in done.stderr


def test_older_python_is_refused_in_one_line(tmp_path):
    done = start("-c", OTHER_PYTHON, "--help", folder=tmp_path, VERSION="3.10.13")
    assert done.stderr == f"error: Python must be 3.11, 3.12 or 3.13, got 3.10.13 ({sys.executable}); {REMEDY}\n"
    assert (done.returncode, done.stdout) == (2, "")


def test_supported_pythons_are_those_of_pyproject():
    requires = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
    assert [f"3.{minor}" for minor in range(20) if f"3.{minor}.0" in requires] == ["3.11", "3.12", "3.13"]
    assert OLDEST_PYTHON == (3, 11)


@pytest.mark.parametrize("file", ["__init__.py", "__main__.py", "runtime/__init__.py", "runtime/interrupt.py"])
def test_older_python_can_compile_what_refuses_it(file):
    ast.parse((ROOT / "pipeline" / file).read_text(), feature_version=(3, 7))
