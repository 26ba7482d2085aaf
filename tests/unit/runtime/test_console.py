"""What a terminal shows of a search, and what a log keeps of it."""

import os
import pty
import subprocess
import sys
import termios

import pytest

from pipeline.runtime.console import Console
from pipeline.runtime.text import format_duration
from tests.support.paths import ROOT

SHOW = """
from pipeline.runtime.console import Console
with Console() as terminal:
    terminal.say("t000 done")
    terminal.progress(1.5, 4, "1 of 4 trials, about 3 min left")
    terminal.say("t001 done")
"""


def test_a_log_has_the_lines_and_no_bar(capsys):
    with Console() as terminal:
        terminal.say("t000 done")
        terminal.progress(1.5, 4, "1 of 4 trials")
        terminal.say("t001 done")
    assert capsys.readouterr().out == "t000 done\nt001 done\n"


def test_a_terminal_has_a_bar_below_the_lines_with_what_is_left_and_loses_it_at_the_end():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([sys.executable, "-c", SHOW], stdout=theirs, check=True, cwd=ROOT)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert " 38% " in shown and "1 of 4 trials, about 3 min left" in shown
    assert shown.index("t000 done") < shown.index("38%") < shown.index("t001 done")
    assert not shown.rsplit("\r", 1)[-1].strip(), "the last line is left empty"


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40 s"), (89.6, "90 s"), (720, "12 min"), (5399, "1 h 30 min"), (12_000, "3 h 20 min")]
)
def test_a_duration_is_short(seconds, text):
    assert format_duration(seconds) == text
