"""The console on a terminal and in a file, and the log's way through it."""

import logging
import os
import pty
import subprocess
import sys
import termios

import pytest

from pipeline.runtime.console import Console, ConsoleHandler, print_exception
from tests.support.paths import ROOT

LINES_AND_BAR = """
import logging
from pipeline.runtime.console import Console, configure_logging
configure_logging(Console())
with Console() as console:
    console.print("t000 done")
    console.progress(1.5, 4, "1 of 4 trials, about 3 min left")
    logging.getLogger("pipeline.data").warning("the cache is full")
    console.print("t001 done")
"""


def on_a_terminal(code, **environ):
    """Return what a terminal of 80 columns receives from a Python program, on both of its streams."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    environ = {**os.environ, "TERM": "xterm", **environ}
    subprocess.run([sys.executable, "-c", code], stdout=theirs, stderr=theirs, check=True, cwd=ROOT, env=environ)
    os.close(theirs)
    received = os.read(ours, 65536).decode()
    os.close(ours)
    return received


def test_console_in_a_file_shows_lines_and_no_bar(capsys):
    with Console() as console:
        console.print("t000 done")
        console.progress(1.5, 4, "1 of 4 trials")
        console.print("t001 done", "t002 done")
    assert capsys.readouterr() == ("t000 done\nt001 done\nt002 done\n", "")


def test_console_on_a_terminal_keeps_the_bar_below_the_lines_and_removes_it_at_the_end():
    received = on_a_terminal(LINES_AND_BAR)
    assert " 38% " in received and "1 of 4 trials, about 3 min left" in received
    assert received.index("t000 done") < received.index("38%") < received.index("t001 done")
    before_warning = received[: received.index("the cache is full")].rsplit("\n", 1)[-1]
    assert before_warning.rsplit("\r", 1)[-1].endswith("warning:\x1b[0m "), "the bar makes way for the log"
    assert not received.rsplit("\r", 1)[-1].strip(), "the last line is left empty"


def test_console_writes_warnings_errors_and_notes_to_stderr_with_their_labels(capsys):
    console = Console()
    console.warn("the cache is full")
    console.error("depth must be more")
    console.note("stopped by SIGTERM")
    assert capsys.readouterr() == ("", "warning: the cache is full\nerror: depth must be more\nstopped by SIGTERM\n")


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_console_colours_the_label_on_a_terminal_that_wants_it(environ, coloured, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    received = on_a_terminal("from pipeline.runtime.console import Console; Console().error('no')", **environ)
    assert received.strip() == ("\x1b[31merror:\x1b[0m no" if coloured else "error: no")


def test_console_handler_shows_records_in_the_consoles_form(capsys):
    handler = ConsoleHandler(Console())
    for level, message in ((logging.INFO, "downloading"), (logging.WARNING, "no GPU"), (logging.ERROR, "lost")):
        handler.emit(logging.LogRecord("pipeline.data", level, "", 0, "%s", (message,), None))
    assert capsys.readouterr() == ("", "downloading\nwarning: no GPU\nerror: lost\n")


CONFIGURE = """
import logging
from pipeline.runtime.console import Console, configure_logging
configure_logging(Console())
logging.getLogger("pipeline.data").info("downloading")
logging.getLogger("pipeline.data").debug("hidden")
logging.getLogger("alembic").info("hidden")
logging.getLogger("urllib3.connectionpool").warning("hidden")
logging.getLogger("alembic").warning("old schema")
"""


def test_configure_logging_shows_own_notices_and_the_warnings_of_all():
    done = subprocess.run([sys.executable, "-c", CONFIGURE], capture_output=True, text=True, check=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("", "downloading\nwarning: old schema\n")


NAMES = [
    ("a\x1b]0;title\x07", r"a\x1b]0;title\x07"),
    ("a\rerror: b", r"a\rerror: b"),
    ("a\nb", r"a\nb"),
    ("\x9b31m", r"\x9b31m"),
    ("\u202eevil\u2066", r"\u202eevil\u2066"),
    ("http://me:s3cret@host", "http://me:***@host"),
]


@pytest.mark.parametrize(("name", "shown"), NAMES)
def test_console_shows_control_characters_as_text_and_no_secrets(name, shown, capsys):
    console = Console()
    console.print(name, name)
    console.note(name)
    console.warn(name)
    console.error(name)
    assert capsys.readouterr() == (f"{shown}\n" * 2, f"{shown}\nwarning: {shown}\nerror: {shown}\n")


@pytest.mark.parametrize(("name", "shown"), NAMES[:1])
def test_progress_shows_control_characters_as_text(name, shown):
    code = f"from pipeline.runtime.console import Console\nwith Console() as console: console.progress(1, 2, {name!r})"
    received = on_a_terminal(code)
    assert shown in received and "\x07" not in received


def test_console_handler_shows_a_record_of_several_lines_on_one(capsys):
    handler = ConsoleHandler(Console())
    try:
        raise ValueError("the traceback is the library's")
    except ValueError as error:
        handler.emit(
            logging.LogRecord("matplotlib", logging.WARNING, "", 0, "Bad key\nin %s", ("a file",), (None, error, None))
        )
    assert capsys.readouterr() == ("", "warning: Bad key in a file\n")


def test_print_exception_keeps_the_traceback_and_hides_secrets(capsys):
    try:
        raise ValueError("http://me:s3cret@host\x1b")
    except ValueError as error:
        print_exception(type(error), error, error.__traceback__)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Traceback (most recent call last):\n")
    assert err.endswith("ValueError: http://me:***@host\\x1b\n")
