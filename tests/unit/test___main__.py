"""Starting the program: Ctrl-C at any moment of it ends in one line."""

import os
import signal
import subprocess
import sys

import pytest

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
