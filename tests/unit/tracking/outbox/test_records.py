"""Tests of records, sent to a real MLflow store."""

import errno

import mlflow
import pytest
from mlflow.entities import Param
from mlflow.exceptions import MlflowException

from pipeline.runtime.errors import NotFound, Rejected, TrackingError, Unavailable
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.outbox.records import EndRun, LogBatch, Point, coalesce, from_json, is_permanent
from tests.support.scripted import mlflow_store


class Overtaken(mlflow.MlflowClient):
    """Between its look and its writing another process logs params, as MLflow's store then says."""

    def __init__(self, *others):
        super().__init__()
        self.others = list(others)

    def log_batch(self, run_id, *arguments, **more):
        if self.others:
            super().log_batch(run_id, params=[Param(*one) for one in self.others])
            self.others = []
            raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: params.key, params.run_uuid")
        super().log_batch(run_id, *arguments, **more)


@pytest.fixture
def run_id(tmp_path):
    with mlflow_store(tmp_path):
        yield mlflow.MlflowClient().create_run("0").info.run_id


def overtaken(*params):
    """Return a client before whose first batch another process logs parameters."""
    client = TrackingClient()
    client.mlflow = Overtaken(*params)
    return client


def batch(run_id, **params):
    return LogBatch(run_id, params=params, metrics=[Point("loss", 0.5, 1, 1)])


def test_log_batch_with_params_that_another_process_logs_meanwhile_sends_the_rest(run_id):
    batch(run_id, trials="5", hours="none").send(overtaken(("trials", "5")))
    run = mlflow.get_run(run_id)
    assert run.data.params == {"trials": "5", "hours": "none"}
    assert len(mlflow.MlflowClient().get_metric_history(run_id, "loss")) == 1


def test_log_batch_with_params_that_another_process_logs_otherwise_raises(run_id):
    with pytest.raises(TrackingError, match="UNIQUE constraint failed"):
        batch(run_id, trials="5").send(overtaken(("trials", "6")))


@pytest.mark.parametrize(
    ("once", "values", "kept"),
    [(True, (0.5, 0.5), [0.5]), (True, (0.5, 0.6), [0.5]), (False, (0.5, 0.5), [0.5]), (False, (0.5, 0.6), [0.5, 0.6])],
)
def test_log_batch_with_a_summary_metric_again_logs_it_once(run_id, once, values, kept):
    client = TrackingClient()
    for time, value in enumerate(values):
        LogBatch(run_id, metrics=[Point("test_accuracy", value, time, 0)], one_point_a_step=once).send(client)
    assert [point.value for point in client.get_metric_history(run_id, "test_accuracy")] == kept


def test_coalesce_merges_batches_of_one_run_until_the_first_other_record():
    records = [
        LogBatch("a", (Point("loss", 1.0, 1, 1),), params={"depth": "3"}),
        LogBatch("a", (Point("loss", 0.5, 2, 2),), tags={"device": "cpu"}, retried=True),
        EndRun("a", "FINISHED", 1, {}),
        LogBatch("a"),
    ]
    merged, count = coalesce(records)
    points = (Point("loss", 1.0, 1, 1), Point("loss", 0.5, 2, 2))
    assert count == 2
    assert merged == LogBatch("a", points, {"depth": "3"}, {"device": "cpu"}, retried=True)
    assert coalesce(records[2:]) == (records[2], 1)


@pytest.mark.parametrize("other", [LogBatch("b"), LogBatch("a", of_model=True), LogBatch("a", one_point_a_step=True)])
def test_coalesce_keeps_batches_of_different_calls_apart(other):
    assert coalesce([LogBatch("a"), other]) == (LogBatch("a"), 1)


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (Rejected("refused"), True),
        (NotFound("no such run"), True),
        (Unavailable("no answer"), False),
        (OSError(errno.ENOSPC, "full"), True),
        (ConnectionError("refused"), False),
    ],
)
def test_is_permanent_holds_for_what_a_repeated_call_would_raise_again(error, permanent):
    assert is_permanent(error) == permanent


def test_from_json_of_something_else_raises_value_error():
    with pytest.raises(ValueError, match="no record"):
        from_json({"kind": "LogBatch"})
