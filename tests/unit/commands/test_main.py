"""What every command makes of how its work ended."""

import errno
import logging
import signal
import subprocess
import sys

import mlflow
import pytest

from pipeline.commands.main import run_command
from pipeline.runtime.errors import Diverged, NothingToDo, Stopped, UsageError
from pipeline.tracking.tags import Tag
from tests.support.scripted import mlflow_store


@pytest.fixture
def run_id(tmp_path):
    with mlflow_store(tmp_path):
        yield mlflow.MlflowClient().create_run("0").info.run_id


def ends(error):
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
        (Stopped(signal.SIGTERM), 143, "", "stopped by SIGTERM\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_end_has_one_line_and_an_exit_code(error, code, out, err, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    assert ends(error) == code
    assert capsys.readouterr() == (out, err)


def test_the_tries_to_reach_a_server_are_not_told_one_by_one(caplog):
    assert run_command(lambda console: logging.getLogger("urllib3.connectionpool").warning("Retrying after ...")) == 0
    assert not caplog.records


LEAVES = """
import atexit, sys
from pipeline.commands.main import exit_process

atexit.register(print, " waited for")
print("said", end="")
exit_process(int(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("code", "out"), [(143, "said"), (130, "said"), (0, "said waited for\n"), (2, "said waited for\n")]
)
def test_a_stopped_process_says_what_it_has_to_and_waits_for_nothing_more(code, out):
    ended = subprocess.run([sys.executable, "-c", LEAVES, str(code)], stdout=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stdout) == (code, out)


def test_a_fault_of_the_program_is_not_hidden():
    with pytest.raises(PermissionError):
        ends(PermissionError(errno.EACCES, "not yours"))


def test_work_that_says_how_it_ended_is_believed():
    assert (run_command(lambda console: None), run_command(lambda console: 1)) == (0, 1)


def test_a_refusal_is_said_in_the_run_that_mlflow_run_opened(monkeypatch, run_id):
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert ends(UsageError("depth must be more")) == 2
    assert mlflow.get_run(run_id).data.tags[Tag.OUTCOME_REASON] == "depth must be more"
