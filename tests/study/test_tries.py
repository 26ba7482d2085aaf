"""Which trainings are tried again."""

import pytest

from pipeline.study.tries import ATTEMPTS, LOSSES, tried_again
from pipeline.workers.jobs import Ended, Outcome


def again(outcome, *, can_pass=True, attempt=1, losses=0):
    gone = Ended(1, outcome, "gone", can_pass, {}, "", "cpu", None)
    return tried_again(gone, attempt=attempt, losses=losses)


@pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.STOPPED])
def test_what_a_crash_or_a_stranger_has_ended_is_tried_twice_more(outcome):
    assert [again(outcome, attempt=attempt) for attempt in range(1, 5)] == [True, True, False, False]


def test_what_loses_its_node_is_tried_four_times_more_however_often_it_has_crashed():
    assert [again(Outcome.LOST, losses=losses, attempt=ATTEMPTS) for losses in range(6)] == [True] * 4 + [False] * 2


def test_crashes_are_counted_apart_from_losses():
    assert again(Outcome.CRASHED, losses=LOSSES)


@pytest.mark.parametrize("outcome", [Outcome.FINISHED, Outcome.RAISED, Outcome.OOM, Outcome.TIMEOUT, Outcome.STOPPED])
def test_what_would_end_the_same_way_is_not_tried_again(outcome):
    assert not again(outcome, can_pass=False)
