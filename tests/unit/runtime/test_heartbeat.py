"""Signs of life that go on whatever a beat does, and that end."""

import threading

import pytest

from pipeline.runtime.heartbeat import heartbeat


def test_beats_go_on_after_one_that_raised():
    three, count = threading.Event(), []

    def beat():
        count.append(1)
        if len(count) == 3:
            three.set()
        raise ConnectionError("the store is away")

    with heartbeat(beat, seconds=0.001):
        assert three.wait(30)


def test_no_beat_comes_after_the_end():
    beaten = threading.Event()
    with heartbeat(beaten.set, seconds=0.001):
        assert beaten.wait(30)
    beaten.clear()
    assert not beaten.wait(0.05)


def test_the_end_waits_for_a_beat_under_way():
    begun, over = threading.Event(), []

    def beat():
        begun.set()
        threading.Event().wait(0.1)
        over.append(1)

    with heartbeat(beat, seconds=0.001):
        assert begun.wait(30)
    assert over


def test_the_end_does_not_wait_for_ever_for_a_store_that_is_away(monkeypatch):
    monkeypatch.setattr("pipeline.runtime.heartbeat.PATIENCE_SECONDS", 0.01)
    begun, back = threading.Event(), threading.Event()

    def beat():
        begun.set()
        back.wait()

    with heartbeat(beat, seconds=0.001):
        assert begun.wait(30)
    back.set()


def test_an_error_within_is_not_hidden():
    with pytest.raises(ZeroDivisionError), heartbeat(lambda: None):
        1 / 0  # noqa: B018
