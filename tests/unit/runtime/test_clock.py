"""Clocks that go on as they are when the time of the system is set."""

import itertools
import time

from pipeline.runtime.clock import now_milliseconds, seconds_since_boot


def test_now_milliseconds_does_not_follow_a_clock_that_is_set(monkeypatch):
    before, now = now_milliseconds(), time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    assert 0 <= now_milliseconds() - before < 60_000


def test_now_milliseconds_is_later_in_each_call():
    times = [now_milliseconds() for _ in range(100)]
    assert all(first < second for first, second in itertools.pairwise(times))
    assert times[-1] - times[0] < 60_000


def test_seconds_since_boot_goes_on_while_the_process_sleeps():
    before = seconds_since_boot()
    time.sleep(0.05)
    assert 0.05 <= seconds_since_boot() - before < 60
