"""Results of trials whose task failed with an error of Ray's."""

import pytest

from pipeline.config.training import TrainingConfig
from pipeline.search.executors.base import TrialJob
from pipeline.search.executors.ray_results import result_from_ray_error, summary_line
from pipeline.tracking.tags import RunRef, TrialOutcome

JOB = TrialJob(7, TrainingConfig.build({"dataset": "digits"}), RunRef("", ""), "trial")
SETUP = """[Node 10.0.0.7] Traceback (most recent call last):
  File "protocol.py", line 230, in _handle_http_protocol
ModuleNotFoundError: No module named 'smart_open'

Traceback (most recent call last):
  File "packaging.py", line 992, in download
    protocol.download_remote_uri(source_uri=pkg_uri)
OSError: [Errno 28] No space left on device
and more of it
"""


def result_of(name, *arguments):
    errors = pytest.importorskip("ray").exceptions
    return result_from_ray_error(JOB, getattr(errors, name)(*arguments), errors)


@pytest.mark.parametrize(
    ("name", "arguments"), [("NodeDiedError", ["gone"]), ("WorkerCrashedError", []), ("LocalRayletDiedError", [])]
)
def test_result_from_error_of_lost_node_is_lost_and_retryable(name, arguments):
    result = result_of(name, *arguments)
    assert (result.outcome, result.reason, result.retryable) == (TrialOutcome.LOST, f"its node was lost: {name}", True)


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("RuntimeEnvSetupError", [SETUP], "RuntimeEnvSetupError: OSError: [Errno 28] No space left on device"),
        ("RuntimeEnvSetupError", ["no pip\\nhere"], "RuntimeEnvSetupError: no pip\\nhere"),
        ("TaskUnschedulableError", ["gone"], "TaskUnschedulableError: The task is not schedulable: gone"),
    ],
)
def test_result_from_other_ray_error_is_raised_and_retryable(name, arguments, reason):
    result = result_of(name, *arguments)
    assert (result.outcome, result.reason, result.retryable) == (TrialOutcome.RAISED, reason, True)
    assert arguments[0] in result.output_tail


def test_result_from_task_error_is_not_retryable_and_from_memory_error_is_oom():
    quoted = (
        'Traceback (most recent call last):\n  File "node.py", line 9\n    1 / 0\nZeroDivisionError: division by zero'
    )
    result = result_of("RayTaskError", "carry_out", quoted, ZeroDivisionError("division by zero"))
    assert (result.outcome, result.reason) == (TrialOutcome.RAISED, "ZeroDivisionError: division by zero")
    assert not result.retryable
    assert result_of("OutOfMemoryError", "low on memory\nmore").reason == "OutOfMemoryError: low on memory"


def test_summary_line_of_error_without_message_is_empty():
    assert summary_line(ValueError("")) == ""
