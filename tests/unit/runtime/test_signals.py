"""Ctrl-C, SIGTERM and a closed terminal in a real process."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress

import pytest

from pipeline.runtime import signals
from pipeline.runtime.errors import Stopped
from pipeline.runtime.signals import ONCE_SECONDS, count_interrupts, errors_as_stopped, handle_signals, stop

PROGRAM = """
import time
from pipeline.runtime.errors import Stopped
from pipeline.runtime.signals import handle_signals
with handle_signals():
    try:
        print("ready", flush=True)
        time.sleep(30)
    except Stopped as stopped:
        print(f"stopped by {stopped}", flush=True)
        try:
            time.sleep(CLEAN_UP)
            print("cleaned up", flush=True)
        except KeyboardInterrupt:
            print("gave up", flush=True)
"""


def start(clean_up):
    command = [sys.executable, "-c", PROGRAM.replace("CLEAN_UP", str(clean_up))]
    # Under nohup SIGHUP is ignored, which the process would inherit.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_handle_signals_raises_stopped_that_can_be_cleaned_up_after(number):
    process = start(0)
    process.send_signal(number)
    assert process.communicate(timeout=10)[0] == f"stopped by {number.name}\ncleaned up\n"


def test_handle_signals_takes_both_signals_of_a_ctrl_c_under_mlflow_run_as_one():
    process = start(0.3)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopped by SIGINT\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[0] == "cleaned up\n"


def test_second_ctrl_c_after_a_second_ends_the_clean_up():
    process = start(20)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "stopped by SIGTERM\n"
    time.sleep(1.2)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[0] == "gave up\n"


@pytest.fixture
def clock(monkeypatch):
    """Time as the test sets it."""
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    return now


def test_count_interrupts_counts_signals_and_raises_nothing(clock):
    with count_interrupts() as interrupts:
        assert interrupts() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts() == 1
        clock[0] += 1.1 * ONCE_SECONDS
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts() == 2
        assert interrupts.exit_code == 128 + signal.SIGTERM, "of the first one"


def test_later_signals_print_nothing(capfd):
    with count_interrupts():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            # the thread that waits for the first one is done with it
            time.sleep(0.1)
    assert capfd.readouterr().err == ""


def test_count_interrupts_counts_the_signals_of_one_ctrl_c_once(clock):
    with count_interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        clock[0] += 0.9 * ONCE_SECONDS
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts() == 1


@pytest.fixture
def default_ctrl_c():
    """Ctrl-C as Python takes it, also where the tests run in a shell's background, which has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_count_interrupts_restores_the_handlers_at_its_end(default_ctrl_c):
    with count_interrupts() as interrupts:
        pass
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert interrupts() == 0


def test_count_interrupts_lets_a_process_go_on_working():
    program = """
import time
from pipeline.runtime.signals import count_interrupts
with count_interrupts() as interrupts:
    print("ready", flush=True)
    until = time.monotonic() + 20
    while interrupts() < 2 and time.monotonic() < until:
        time.sleep(0.01)
    print(interrupts(), flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[0] == "2\n"


def test_count_interrupts_ends_a_process_that_does_not_end_by_itself():
    program = """
import socket
from pipeline.runtime import signals
signals.DRIVER_GRACE_SECONDS = 0.5
here, there = socket.socketpair()
with signals.count_interrupts() as interrupts:
    interrupts.on_deadline = lambda stopped: print(f"stopped by {stopped}", flush=True)
    print("ready", flush=True)
    here.recv(1)  # as from a server that accepts a request and does not answer
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[0] == "stopped by SIGTERM\n"
    assert process.returncode == 128 + signal.SIGTERM


def test_hang_up_under_nohup_stays_ignored():
    process = subprocess.Popen(
        ["nohup", sys.executable, "-c", PROGRAM.replace("CLEAN_UP", "0")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[0] == "stopped by SIGTERM\ncleaned up\n"


def test_nested_handle_signals_share_their_state_and_raise_once():
    with handle_signals() as outer:
        with pytest.raises(Stopped), handle_signals() as inner:
            assert inner is outer
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # while the clean-up goes on
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("inner", [nullcontext, errors_as_stopped])
def test_error_in_place_of_stopped_is_raised_as_stopped(inner):
    def lose_stopped():
        """Raise another error, as C code does that loses the one of a Python function that it calls."""
        with suppress(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        raise SystemError("bad argument to internal function")

    with pytest.raises(Stopped, match="^SIGTERM$") as caught, handle_signals(), inner():
        lose_stopped()
    assert isinstance(caught.value.__cause__, SystemError)
    with pytest.raises(SystemError), handle_signals(), errors_as_stopped():
        raise SystemError("without a signal")


def test_stop_raises_stopped_with_its_reason():
    with pytest.raises(Stopped, match="^SIGTERM, as nobody was left$"), handle_signals():
        stop("as nobody was left")
    with pytest.raises(Stopped, match="^SIGTERM$"), handle_signals():
        os.kill(os.getpid(), signal.SIGTERM)


def test_main_thread_deep_in_c_code_has_on_deadline_called_and_the_process_ends():
    program = """
import hashlib, os, signal, threading
from pipeline.runtime import signals
signals.PATIENCE_SECONDS, signals.GRACE_SECONDS = 0.1, 0.5
with signals.handle_signals() as shutdown:
    shutdown.on_deadline = lambda stopped: print(f"stopped by {stopped}", flush=True)
    threading.Timer(1, os.kill, [os.getpid(), signal.SIGTERM]).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes in C, as compiling with XLA is
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("stopped by SIGTERM\n", 128 + signal.SIGTERM)
