"""Stopping with the `mlflow run` that started the process, with or without a shell between."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest

from tests.support.paths import ROOT

TRAINER = """
import sys, time
from pipeline.runtime.parent_watch import ancestors_up_to_mlflow, stop_with_parent
from pipeline.runtime.errors import Stopped
from pipeline.runtime.signals import handle_signals
try:
    with handle_signals(), stop_with_parent():
        print(len(ancestors_up_to_mlflow()), flush=True)
        time.sleep(60)
except Stopped as stopped:
    print(f"stopped by {stopped}", flush=True)
"""
ABOVE = """
import os, subprocess, sys
os.environ.update(MLFLOW_RUN_ID="abc") if os.environ.get("GIVE") else None
sys.exit(subprocess.call(sys.argv[1:]))
"""


@pytest.fixture
def started(tmp_path):
    """Starts a trainer below some program as `mlflow run` would; returns that and what the trainer prints."""
    processes = []

    def start(*above, run="abc"):
        command = [*above, sys.executable, "-c", TRAINER]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | {"GIVE": run}
        )
        processes.append(process)
        return process, process.stdout

    yield start
    for process in processes:
        with suppress(ProcessLookupError):  # none is left
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


PYTHON = [sys.executable, "-c", ABOVE]
SHELL = ["bash", "-c", '"$@"; true', "bash"]  # which cannot become the trainer, as it has something left to do


@pytest.mark.parametrize(("above", "chain"), [(PYTHON, 1), ([*PYTHON, *SHELL], 2)], ids=["alone", "with a shell"])
def test_process_stops_when_mlflow_run_is_killed(started, above, chain):
    process, out = started(*above)
    assert out.readline() == f"{chain}\n"
    process.send_signal(signal.SIGKILL)
    assert out.readline() == "stopped by SIGTERM, as `mlflow run`, which had started it, was gone\n"


def test_process_stops_when_the_shell_between_is_killed(started):
    process, out = started(*PYTHON, *SHELL)
    assert out.readline() == "2\n"
    psutil.Process(process.pid).children()[0].kill()
    assert out.readline().startswith("stopped by SIGTERM")


def test_process_without_mlflow_run_watches_nobody(started):
    _, out = started(*PYTHON, run="")
    assert out.readline() == "0\n"


def test_shell_in_which_the_user_set_the_variable_is_no_mlflow_run(started):
    _, out = started("env", "MLFLOW_RUN_ID=abc", "bash", "-c", 'MLFLOW_RUN_ID=def "$@"; true', "bash")
    assert out.readline() == "0\n"


IS_RESUMED = "from pipeline.runtime.parent_watch import is_resumed_by_mlflow; print(is_resumed_by_mlflow())"
# As `mlflow run`: a Python whose words end with those of the command that it runs
MLFLOW_RUN = """
import os, subprocess, sys
sys.exit(subprocess.call(sys.argv[sys.argv.index("--") + 1 :], env=os.environ | {"MLFLOW_RUN_ID": "abc"}))
"""
PASSED_ON = [sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"]


@pytest.mark.parametrize(
    ("words", "between", "expected"),
    [
        (["run", ".", "--run-id", "abc"], [], True),
        (["run", ".", "--run-id=abc"], SHELL, True),
        (["run", "."], SHELL, False),
        (["run", ".", "--run-id", "abc"], PASSED_ON, False),
    ],
    ids=["direct", "by a shell", "a new run", "passed on by a program of the project"],
)
def test_is_resumed_by_mlflow_is_what_mlflow_run_was_asked(words, between, expected):
    command = [sys.executable, "-c", MLFLOW_RUN, *words, "--", *between, sys.executable, "-c", IS_RESUMED]
    environ = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environ)
    assert done.stdout == f"{expected}\n"
