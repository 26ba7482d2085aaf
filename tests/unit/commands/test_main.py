"""Dispatch of commands: their help, environment defaults, one-line errors and exit codes."""

import errno
import logging
import os
import signal
import subprocess
import sys

import mlflow
import pytest

from pipeline.commands.main import COMMANDS, Command, run, run_command
from pipeline.runtime.errors import Diverged, NothingToDo, Stopped, UsageError
from pipeline.tracking.tags import Tag
from tests.support.paths import ROOT
from tests.support.scripted import mlflow_store


@pytest.fixture
def run_id(tmp_path):
    with mlflow_store(tmp_path):
        yield mlflow.MlflowClient().create_run("0").info.run_id


def run_raising(error):
    def work(console):
        raise error

    return run_command(work)


@pytest.mark.parametrize(
    ("error", "code", "out", "err"),
    [
        (UsageError("depth must be more"), 2, "", "error: depth must be more\n"),
        (Diverged("loss became nan"), 1, "", "error: loss became nan\n"),
        (NothingToDo("it is finished"), 0, "it is finished\n", ""),
        (OSError(errno.ENOSPC, "No space left"), 1, "", "error: the disk is full: [Errno 28] No space left\n"),
        (
            MemoryError("Unable to allocate 9 GiB"),
            1,
            "",
            "error: memory does not suffice (Unable to allocate 9 GiB); "
            "try a smaller image_size or batch_size, or a larger patch_size\n",
        ),
        (Stopped(signal.SIGTERM), 143, "", "stopped by SIGTERM\n"),
        (KeyboardInterrupt(), 130, "", "stopped by SIGINT, again, before everything was cleaned up\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_run_command_reports_each_error_in_one_line_with_its_exit_code(error, code, out, err, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    assert run_raising(error) == code
    assert capsys.readouterr() == (out, err)


def test_run_command_hides_the_single_attempts_to_reach_a_server(caplog):
    assert run_command(lambda console: logging.getLogger("urllib3.connectionpool").warning("Retrying after ...")) == 0
    assert not caplog.records


EXITS = """
import atexit, sys
from pipeline.commands.main import exit_process

atexit.register(print, " waited for")
print("flushed", end="")
exit_process(int(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("code", "out"), [(143, "flushed"), (130, "flushed"), (0, "flushed waited for\n"), (2, "flushed waited for\n")]
)
def test_exit_process_flushes_and_after_a_signal_waits_for_nothing(code, out):
    ended = subprocess.run([sys.executable, "-c", EXITS, str(code)], stdout=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stdout) == (code, out)


def test_run_command_lets_other_exceptions_pass():
    with pytest.raises(PermissionError):
        run_raising(PermissionError(errno.EACCES, "not yours"))


def test_run_command_returns_the_exit_code_of_the_work():
    assert (run_command(lambda console: None), run_command(lambda console: 1)) == (0, 1)


def test_run_command_fails_the_run_that_mlflow_run_opened_with_the_refusal(monkeypatch, run_id):
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert run_raising(UsageError("depth must be more")) == 2
    assert mlflow.get_run(run_id).data.tags[Tag.OUTCOME_REASON] == "depth must be more"


def test_run_without_a_command_shows_the_commands(capsys):
    assert run([]) == run(["--help"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and all(f"  {name} " in out for name in COMMANDS)


def test_run_of_an_unknown_command_names_the_nearest(capsys):
    assert run(["serach", "smoke"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: the command must be one of train, search, ") and "did you mean search?" in err


HELP = """
import sys
from pipeline.commands.main import run
try:
    run([sys.argv[1], "--help"])
finally:
    print(*sorted(sys.modules), file=sys.stderr)
"""
# whose import takes longer than the rest of the help together
SLOW = {
    "PIL",
    "keras",
    "matplotlib",
    "mlflow",
    "numpy",
    "optuna",
    "pandas",
    "psutil",
    "scipy",
    "sqlalchemy",
    "tensorflow",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example_and_imports_nothing_slow(command):
    done = subprocess.run([sys.executable, "-c", HELP, command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: convmixer {command} ") and f"\n  convmixer {command}" in done.stdout
    assert not SLOW & set(done.stderr.split())


def test_run_takes_the_experiment_from_any_command_line(monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    # MLflow's functions set it
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    seen = []

    def work(arguments, console):
        seen.append((arguments, os.environ["MLFLOW_EXPERIMENT_NAME"]))

    monkeypatch.setitem(COMMANDS, "train", Command("", work))
    assert run(["train", "digits", "--experiment", "mine", "--depth", "2"]) == 0
    assert seen == [(["digits", "--depth", "2"], "mine")]


def test_run_refuses_an_experiment_that_contradicts_the_environment_at_once(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "yours")
    assert run(["train", "digits", "--experiment", "mine"]) == 2
    assert capsys.readouterr().err == (
        "error: experiment must be the one that MLFLOW_EXPERIMENT_NAME names, got 'mine' and 'yours'; "
        "unset MLFLOW_EXPERIMENT_NAME\n"
    )
