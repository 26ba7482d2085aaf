"""What Ray raises for a trial is told as what it was, and in one line."""

import pytest

from pipeline.config import Config
from pipeline.unended import telling_line, unended
from pipeline.workers.jobs import Job, Outcome, RunRef

JOB = Job(7, Config.build({"dataset": "digits"}), RunRef("", ""), "trial")
SETUP = """[Node 10.0.0.7] Traceback (most recent call last):
  File "protocol.py", line 230, in _handle_http_protocol
ModuleNotFoundError: No module named 'smart_open'

Traceback (most recent call last):
  File "packaging.py", line 992, in download
    protocol.download_remote_uri(source_uri=pkg_uri)
OSError: [Errno 28] No space left on device
and more of it
"""


def of(name, *given):
    errors = pytest.importorskip("ray").exceptions
    return unended(JOB, getattr(errors, name)(*given), errors)


@pytest.mark.parametrize(
    ("name", "given"), [("NodeDiedError", ["gone"]), ("WorkerCrashedError", []), ("LocalRayletDiedError", [])]
)
def test_a_lost_node_is_told_as_such(name, given):
    ended = of(name, *given)
    assert (ended.outcome, ended.reason, ended.can_pass) == (Outcome.LOST, f"its node was lost: {name}", True)


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("RuntimeEnvSetupError", [SETUP], "RuntimeEnvSetupError: OSError: [Errno 28] No space left on device"),
        ("RuntimeEnvSetupError", ["no pip\\nhere"], "RuntimeEnvSetupError: no pip\\nhere"),
        ("TaskUnschedulableError", ["gone"], "TaskUnschedulableError: The task is not schedulable: gone"),
    ],
)
def test_what_is_no_loss_of_a_node_is_told_with_its_reason_and_tried_again(name, given, reason):
    ended = of(name, *given)
    assert (ended.outcome, ended.reason, ended.can_pass) == (Outcome.RAISED, reason, True)
    assert given[0] in ended.output_tail


def test_what_the_task_itself_raised_and_a_want_of_memory_are_told_as_such():
    quoted = (
        'Traceback (most recent call last):\n  File "node.py", line 9\n    1 / 0\nZeroDivisionError: division by zero'
    )
    ended = of("RayTaskError", "carry_out", quoted, ZeroDivisionError("division by zero"))
    assert (ended.outcome, ended.reason) == (Outcome.RAISED, "ZeroDivisionError: division by zero")
    assert not ended.can_pass
    assert of("OutOfMemoryError", "low on memory\nmore").reason == "OutOfMemoryError: low on memory"


def test_an_error_without_words_is_no_line():
    assert telling_line(ValueError("")) == ""
