"""Retrying a call: while its errors are transient, and for a limited time."""

import pytest

from pipeline.runtime.retry import pause_seconds, retry


class Away(Exception):
    """Passes."""


class Scripted:
    """A call that gives these results in turn, the last one from then on, and counts."""

    def __init__(self, *results):
        self.results, self.calls = results, 0

    def __call__(self):
        self.calls += 1
        result = self.results[min(self.calls, len(self.results)) - 1]
        if isinstance(result, Exception):
            raise result
        return result


def retried(call, seconds=5.0, **more):
    return retry(call, is_transient=lambda error: isinstance(error, Away), seconds=seconds, pauses=(0.01, 0.02), **more)


def test_retry_after_transient_errors_returns_the_result():
    call = Scripted(Away(), Away(), Away(), "here")
    assert retried(call) == "here"
    assert call.calls == 4


def test_retry_after_its_time_raises_the_last_error():
    call = Scripted(Away("Connection refused"))
    with pytest.raises(Away, match="Connection refused"):
        retried(call, seconds=0.1)
    assert 2 <= call.calls <= 11


@pytest.mark.parametrize("error", [LookupError("no such run"), ValueError("a fault in the request")])
def test_retry_of_a_permanent_error_raises_it_at_once(error):
    call = Scripted(error)
    with pytest.raises(type(error)):
        retried(call)
    assert call.calls == 1


def test_retry_reports_each_error_that_another_call_follows():
    errors = [Away("first"), Away("second"), LookupError("last")]
    reported = []
    with pytest.raises(LookupError):
        retried(Scripted(*errors), on_retry=reported.append)
    assert reported == errors[:2]


def test_pauses_grow_and_the_last_one_repeats():
    assert [pause_seconds((0.5, 1, 5), failures) for failures in range(1, 6)] == [0.5, 1, 5, 5, 5]
