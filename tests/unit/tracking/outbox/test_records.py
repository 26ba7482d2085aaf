"""Tests of records, sent to a real MLflow store."""

import json
import re

import mlflow
import pytest
from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from pipeline.runtime.errors import TrackingError
from pipeline.runtime.files import sha256_files
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.outbox.records import EndRun, LogBatch, LogFiles, LogModel, Point, coalesce, from_json
from pipeline.tracking.tags import Tag
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


@pytest.mark.parametrize("retried", [(True, False), (False, True), (True, True), (False, False)])
def test_coalesce_of_batches_of_which_one_may_have_been_logged_looks_first(retried):
    merged, _ = coalesce([LogBatch("a", retried=each) for each in retried])
    assert merged.retried == any(retried)


@pytest.mark.parametrize("other", [LogBatch("b"), LogBatch("a", of_model=True), LogBatch("a", one_point_a_step=True)])
def test_coalesce_keeps_batches_of_different_calls_apart(other):
    assert coalesce([LogBatch("a"), other]) == (LogBatch("a"), 1)


def test_coalesce_joins_no_more_than_asked():
    assert coalesce([LogBatch("a", tags={"a": "1"}), LogBatch("a", tags={"b": "2"})], at_most=1) == (
        LogBatch("a", tags={"a": "1"}),
        1,
    )


BATCH = {"kind": "LogBatch", "run_id": "a", "metrics": [], "params": {}, "tags": {}}


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"kind": "LogBatch"}, "it is no LogBatch of this version: run_id: Field required"),
        ({"kind": "LogBatch2", "run_id": "a"}, "records of the kind 'LogBatch2' are unknown to this version"),
        ({"kind": ["LogBatch"]}, "it is no record"),
        ([], "it is no record"),
        (None, "it is no record"),
        ("LogBatch", "it is no record"),
        (BATCH | {"run_id": 5}, "run_id: Input should be a valid string"),
        (BATCH | {"metrics": [["loss", 0.5]]}, "metrics.0.2: Field required"),
        (BATCH | {"metrics": [["loss", "high", 1, 1]]}, "metrics.0.1: "),
        (BATCH | {"metrics": {"loss": 1}}, "metrics: "),
        (BATCH | {"params": [1]}, "params: "),
        (BATCH | {"tags": {"a": None}}, "tags.a: "),
        (BATCH | {"unheard": 1}, "unheard: "),
        ({"kind": "EndRun", "run_id": "a", "status": "FINISHED", "end_time": "soon", "tags": {}}, "end_time: "),
        ({"kind": "LogFiles", "run_id": "a", "write": "a"}, "write: "),
    ],
    ids=repr,
)
def test_from_json_of_something_else_raises_value_error(kept, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_json(kept)


def test_log_files_whose_files_are_gone_raises_and_does_not_pass_for_sent(run_id, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    record = LogFiles(run_id).with_files(tmp_path)
    (tmp_path / "b.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"its files are gone: b\.txt"):
        record.send(TrackingClient())
    assert mlflow.MlflowClient().list_artifacts(run_id) == []


def test_log_model_sets_the_digests_of_its_files_before_it_uploads_them(run_id, tmp_path, monkeypatch):
    folder = tmp_path / "files"
    folder.mkdir()
    Model().save(str(folder / "MLmodel"))
    client, digests = TrackingClient(), []

    def upload(model_id, _):
        tags = client.get_logged_model(model_id).tags
        digests.append(tags.get(Tag.FILE_DIGESTS))
        assert tags["temperature"] == "1.4"
        raise ConnectionError("away")

    monkeypatch.setattr(client.mlflow, "log_model_artifacts", upload)
    record = LogModel(run_id, "model", tags={"temperature": "1.4"}).with_files(folder)
    with pytest.raises(ConnectionError):
        record.send(client)
    (uploaded,) = digests
    assert json.loads(uploaded) == sha256_files(folder)
