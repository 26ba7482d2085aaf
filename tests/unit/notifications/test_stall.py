"""Tests of the watch on epochs that do not end."""

import time

from pipeline.notifications.stall import StallWatch


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


def watch(said, **options):
    return StallWatch(
        lambda seconds, usual: said.append(("stalled", seconds, usual)),
        lambda seconds: said.append(("recovered", seconds)),
        **options,
    )


def test_stall_is_said_once_and_its_end_once():
    said = []
    stall = watch(said, least_seconds=0.3)
    with stall.watching(check_seconds=0.01):
        stall.beat()
        wait_for(lambda: said)
        time.sleep(0.2)
        stall.beat()
        stall.beat()
    assert [one[0] for one in said] == ["stalled", "recovered"]
    assert 0.3 <= said[0][1] <= said[1][1]


def test_no_stall_before_the_first_epoch_which_has_no_usual_time():
    said = []
    with watch(said, least_seconds=0.05).watching(check_seconds=0.01):
        time.sleep(0.3)
    assert not said


def test_no_stall_within_several_times_the_usual():
    said = []
    stall = watch(said, least_seconds=0.0, factor=1000.0)
    with stall.watching(check_seconds=0.01):
        time.sleep(0.02)
        stall.beat()
        time.sleep(0.3)
    assert not said


def test_no_stall_after_the_end():
    said = []
    stall = watch(said, least_seconds=0.05)
    with stall.watching(check_seconds=0.01):
        stall.beat()
    time.sleep(0.2)
    assert not said
