"""Which trainings are tried again."""

import pytest

from pipeline.search.executors.base import MAX_ATTEMPTS, MAX_NODE_LOSSES, TrialResult, should_retry
from pipeline.tracking.tags import TrialOutcome


def again(outcome, *, retryable=True, attempt=1, node_losses=0):
    gone = TrialResult(1, outcome, "gone", retryable, {}, "", "cpu", None)
    return should_retry(gone, attempt=attempt, node_losses=node_losses)


@pytest.mark.parametrize("outcome", [TrialOutcome.CRASHED, TrialOutcome.STOPPED])
def test_what_a_crash_or_a_stranger_has_ended_is_tried_twice_more(outcome):
    assert [again(outcome, attempt=attempt) for attempt in range(1, 5)] == [True, True, False, False]


def test_what_loses_its_node_is_tried_four_times_more_however_often_it_has_crashed():
    assert [again(TrialOutcome.LOST, node_losses=losses, attempt=MAX_ATTEMPTS) for losses in range(6)] == [True] * 4 + [
        False
    ] * 2


def test_crashes_are_counted_apart_from_losses():
    assert again(TrialOutcome.CRASHED, node_losses=MAX_NODE_LOSSES)


@pytest.mark.parametrize(
    "outcome",
    [TrialOutcome.FINISHED, TrialOutcome.RAISED, TrialOutcome.OOM, TrialOutcome.TIMEOUT, TrialOutcome.STOPPED],
)
def test_what_would_end_the_same_way_is_not_tried_again(outcome):
    assert not again(outcome, retryable=False)
