"""Clocks that go on as they are when the time of the system is set."""

import time

from pipeline.runtime.clock import now_milliseconds, seconds_since_boot


def test_now_milliseconds_does_not_follow_a_clock_that_is_set(monkeypatch):
    before, now = now_milliseconds(), time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    assert 0 <= now_milliseconds() - before < 60_000


def test_seconds_since_boot_goes_on_while_the_process_sleeps():
    before = seconds_since_boot()
    time.sleep(0.05)
    assert 0.05 <= seconds_since_boot() - before < 60
