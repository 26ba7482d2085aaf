"""What TensorFlow says in a process of its own, and what becomes of one that dies."""

import json

import pytest

from pipeline.health import computing


def said(**told):
    answer = {"version": "2.21.0", "device": "CPU some", "precision": "float32", "unused": None} | told
    return f"print('some library chatters'); print({json.dumps(answer)!r})"


def test_tensorflow_computes_here():
    (finding,) = computing.computing()
    assert finding.state == "ok" and " computes on CPU " in finding.text


def test_a_gpu_that_it_does_not_use_is_broken():
    well, broken = computing.computing(said(unused="this machine has NVIDIA H200 but ...: a cure"))
    assert (well.state, broken.state, broken.text[-6:]) == ("ok", "broken", "a cure")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "its process ended with -4"),
    ],
)
def test_one_that_raises_or_dies_is_broken_and_takes_nobody_with_it(code, reason):
    (finding,) = computing.computing(code)
    assert finding.state == "broken" and reason in finding.text


def test_one_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(computing, "SECONDS", 0.2)
    (finding,) = computing.computing("import time; time.sleep(60)")
    assert finding.state == "broken" and "has not begun" in finding.text
