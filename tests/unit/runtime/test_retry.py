"""Asking again: while there is no answer and not for ever, but never where there is one."""

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from pipeline.runtime.retry import retry
from pipeline.tracking.outbox.records import is_permanent

AWAY = MlflowException("Connection refused")
GONE = MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST)


def again(ask, seconds=5.0):
    is_away = lambda error: isinstance(error, MlflowException) and not is_permanent(error)  # noqa: E731
    return retry(ask, is_transient=is_away, seconds=seconds, pauses=(0.01, 0.02))


def asked(*answers):
    """A question that is answered so in turn, and how often it was asked."""
    times = []

    def ask():
        times.append(None)
        answer = answers[min(len(times), len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask, times


def test_it_asks_until_there_is_an_answer():
    ask, times = asked(AWAY, AWAY, AWAY, "here")
    assert again(ask) == "here"
    assert len(times) == 4


def test_it_gives_up_after_the_time_given_with_what_was_said_last():
    ask, times = asked(AWAY)
    with pytest.raises(MlflowException, match="Connection refused"):
        again(ask, seconds=0.1)
    assert 2 <= len(times) <= 11


@pytest.mark.parametrize("answer", [GONE, ValueError("a fault in the question")])
def test_a_refusal_is_an_answer(answer):
    ask, times = asked(answer)
    with pytest.raises(type(answer)):
        again(ask)
    assert len(times) == 1
