"""The retry policy, and what Executor itself does."""

import pytest

from pipeline.search.executors.base import MAX_ATTEMPTS, MAX_NODE_LOSSES, Executor, TrialResult, should_retry
from pipeline.tracking.tags import TrialOutcome


def retried(outcome, *, retryable=True, attempt=1, node_losses=0):
    result = TrialResult(1, outcome, "reason", retryable, {}, "", "cpu", None)
    return should_retry(result, attempt=attempt, node_losses=node_losses)


@pytest.mark.parametrize("outcome", [TrialOutcome.CRASHED, TrialOutcome.STOPPED])
def test_should_retry_crash_or_external_signal_allows_two_retries(outcome):
    assert [retried(outcome, attempt=attempt) for attempt in range(1, 5)] == [True, True, False, False]


def test_should_retry_lost_node_allows_four_retries_however_often_the_trial_crashed():
    decisions = [retried(TrialOutcome.LOST, node_losses=losses, attempt=MAX_ATTEMPTS) for losses in range(6)]
    assert decisions == [True] * 4 + [False] * 2


def test_should_retry_crash_does_not_count_lost_nodes():
    assert retried(TrialOutcome.CRASHED, node_losses=MAX_NODE_LOSSES)


@pytest.mark.parametrize(
    "outcome",
    [TrialOutcome.FINISHED, TrialOutcome.RAISED, TrialOutcome.OOM, TrialOutcome.TIMEOUT, TrialOutcome.STOPPED],
)
def test_should_retry_result_that_is_not_retryable_returns_false(outcome):
    assert not retried(outcome, retryable=False)


def test_executor_without_an_abstract_method_cannot_be_created():
    class NoEvents(Executor):
        describe = free = start = prune = stop = stop_all = None

    with pytest.raises(TypeError, match="abstract method '?events"):
        NoEvents()


def test_exit_of_the_context_stops_all_trials_now():
    calls = []

    class Recording(Executor):
        describe = free = start = events = prune = stop = None

        def stop_all(self, *, now):
            calls.append(now)

    with Recording():
        assert calls == []
    assert calls == [True]
