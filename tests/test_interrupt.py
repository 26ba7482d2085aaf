"""Ctrl-C and SIGTERM in a real process."""

import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import time
from pipeline.interrupt import Stopped, stoppable
with stoppable():
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
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("CLEAN_UP", str(clean_up))], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_an_exception_that_can_be_cleaned_up_after(number):
    process = start(0)
    process.send_signal(number)
    assert process.communicate(timeout=10)[0] == f"stopped by {number.name}\ncleaned up\n"


def test_the_two_signals_of_one_ctrl_c_under_mlflow_run_count_once():
    process = start(0.3)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopped by SIGINT\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[0] == "cleaned up\n"


def test_a_second_ctrl_c_later_ends_the_clean_up():
    process = start(20)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "stopped by SIGTERM\n"
    time.sleep(1.2)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[0] == "gave up\n"
