"""Ctrl-C before a command handles signals: the end of the process, in one line."""

import signal
import subprocess
import sys

from tests.support.paths import ROOT


def interrupted(code, **options):
    program = "import os, signal, sys\nfrom pipeline.runtime import interrupt, streams\n" + code
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60, **options
    )


def test_exit_on_interrupt_ends_in_one_line_past_every_except():
    done = interrupted(
        "interrupt.exit_on_interrupt()\n"
        "try: signal.raise_signal(signal.SIGINT)\nexcept BaseException: print('caught')\nprint('went on')",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped by SIGINT\n")


def test_exit_on_interrupt_writes_its_line_while_standard_error_is_captured(tmp_path):
    done = interrupted(
        f"interrupt.exit_on_interrupt()\nwith open({str(tmp_path / 'file')!r}, 'w') as file, "
        "streams.captured_stderr(file.fileno()): os.write(2, b'noise'); signal.raise_signal(signal.SIGINT)",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stderr) == (130, "stopped by SIGINT\n")
    assert (tmp_path / "file").read_text() == "noise"


def test_exit_on_interrupt_leaves_it_ignored_in_a_shells_background():
    done = interrupted(
        "interrupt.exit_on_interrupt()\nsignal.raise_signal(signal.SIGINT)\nprint('went on')",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert (done.returncode, done.stdout) == (0, "went on\n")


def test_interrupt_imports_no_module_that_python_has_not_imported():
    code = "import os, sys; before = {*sys.modules}; import pipeline.runtime.interrupt; print(*{*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert {*done.stdout.split()} == {"pipeline", "pipeline.runtime", "pipeline.runtime.interrupt"}
