"""Faults of the standard streams, each in a process of its own: none ends it, and its exit code stays."""

import os
import pty
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

from pipeline.runtime import streams
from tests.support.paths import ROOT

TOLERANT = "import os, sys, time\nfrom pipeline.runtime import streams\nstreams.tolerate_errors()\n"
# more than a pipe or a buffer holds
CHATTY = TOLERANT + "for _ in range(20_000): print('a line'); print('another', file=sys.stderr)\nsys.exit(3)"


def shell(code, redirections, **variables):
    """Run a program with redirections of bash; return its exit code and what is printed."""
    command = f'"$0" -c "$1" {redirections}'
    environ = {**os.environ, **variables}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command, sys.executable, code],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode()


@pytest.mark.parametrize(
    "redirections",
    ["2>&1 | head -n 1", ">/dev/full 2>/dev/full", ">&- 2>&-", "<&- >&- 2>&-", "2>&- | true"],
    ids=["reader gone", "disk full", "closed", "all closed", "no reader"],
)
def test_output_that_cannot_be_written_is_lost_and_the_exit_code_stays(redirections):
    code, _, err = shell(CHATTY, redirections)
    assert (code, err) == (3, "")


def test_text_that_the_encoding_lacks_is_escaped():
    code, out, err = shell(TOLERANT + r"print('caf\xe9 \udce9 日本')", "", PYTHONIOENCODING="ascii")
    assert (code, out, err) == (0, "caf\\xe9 \\udce9 \\u65e5\\u672c\n", "")


def test_closed_stream_gives_its_number_to_no_file(tmp_path):
    code = TOLERANT + f"file = open({str(tmp_path / 'file')!r}, 'w')\nos.write(1, b'of a library')\nfile.close()"
    assert shell(code, ">&- 2>&-")[0] == 0
    assert (tmp_path / "file").read_text() == ""


def test_full_pipe_that_another_program_made_non_blocking_loses_nothing():
    code = TOLERANT + "os.set_blocking(1, False)\nfor _ in range(20_000): print('a line')"
    code, out, err = shell(code, "| { sleep 0.5; cat; }")
    assert (code, out.count("a line\n"), err) == (0, 20_000, "")


def test_closed_terminal_loses_the_output():
    ours, theirs = pty.openpty()
    code = TOLERANT + "print('ready')\nsys.stdin.readline()\nprint('lost')\nsys.exit(3)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    os.close(theirs)
    assert b"ready" in os.read(ours, 100)
    os.close(ours)
    process.communicate(b"\n", timeout=30)
    assert process.returncode == 3


def test_captured_stderr_comes_back_when_it_is_nested(tmp_path, capfd):
    outer, inner = (os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT) for name in ("outer", "inner"))
    with ExitStack() as stack:
        stack.enter_context(streams.captured_stderr(outer))
        with streams.captured_stderr(inner):
            os.write(2, b"inner")
        os.write(2, b"outer")
    os.close(outer)
    os.close(inner)
    os.write(2, b"terminal")
    assert [(tmp_path / name).read_text() for name in ("outer", "inner")] == ["outer", "inner"]
    assert capfd.readouterr().err == "terminal"


def test_quiet_stderr_drops_what_is_written_to_the_descriptor(capfd):
    with streams.quiet_stderr():
        os.write(2, b"noise\n")
    os.write(2, b"kept\n")
    assert capfd.readouterr().err == "kept\n"
