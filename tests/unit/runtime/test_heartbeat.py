"""The heartbeat: it survives errors, and ends."""

import threading

import pytest

from pipeline.runtime.heartbeat import heartbeat


def test_heartbeat_goes_on_after_a_call_that_raised():
    three, count = threading.Event(), []

    def beat():
        count.append(1)
        if len(count) == 3:
            three.set()
        raise ConnectionError("the store is away")

    with heartbeat(beat, seconds=0.001):
        assert three.wait(30)


def test_heartbeat_makes_no_call_after_its_end():
    beaten = threading.Event()
    with heartbeat(beaten.set, seconds=0.001):
        assert beaten.wait(30)
    beaten.clear()
    assert not beaten.wait(0.05)


def test_end_waits_for_a_call_that_has_begun():
    begun, over = threading.Event(), []

    def beat():
        begun.set()
        threading.Event().wait(0.1)
        over.append(1)

    with heartbeat(beat, seconds=0.001):
        assert begun.wait(30)
    assert over


def test_end_does_not_wait_longer_than_its_patience(monkeypatch):
    monkeypatch.setattr("pipeline.runtime.heartbeat.PATIENCE_SECONDS", 0.01)
    begun, back = threading.Event(), threading.Event()

    def beat():
        begun.set()
        back.wait()

    with heartbeat(beat, seconds=0.001):
        assert begun.wait(30)
    back.set()


def test_error_in_the_block_passes():
    with pytest.raises(ZeroDivisionError), heartbeat(lambda: None):
        1 / 0  # noqa: B018
