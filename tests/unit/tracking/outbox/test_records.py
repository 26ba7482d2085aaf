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
from pipeline.tracking.models import CALIBRATED, MODEL, SERVED
from pipeline.tracking.outbox import records
from pipeline.tracking.outbox.records import (
    MAX_RECORDS,
    EndRun,
    ForwardSpool,
    LogBatch,
    LogDataset,
    LogFiles,
    LogInputModel,
    LogModel,
    LogTable,
    Point,
    RegisterCalibrated,
    RegisterVersion,
    WriteModelCard,
    coalesce,
    from_json,
)
from pipeline.tracking.outbox.spool import Spool
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
    return LogBatch(run_id, params=params, metrics=[Point("loss", 0.5, 1, 1)], tags={"device": "cpu"})


def test_log_batch_with_params_that_another_process_logs_meanwhile_sends_the_rest(run_id):
    batch(run_id, trials="5", hours="none").send(overtaken(("trials", "5")))
    run = mlflow.get_run(run_id)
    assert run.data.params == {"trials": "5", "hours": "none"} and run.data.tags["device"] == "cpu"
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


def test_log_model_again_after_a_lost_answer_completes_the_same_model(run_id, tmp_path, monkeypatch):
    folder = tmp_path / "files"
    folder.mkdir()
    Model().save(str(folder / "MLmodel"))
    client = TrackingClient()
    record = LogModel(run_id, "model").with_files(folder)
    finalize = client.mlflow.finalize_logged_model

    def lose_answer(*arguments):
        finalize(*arguments)
        raise ConnectionError("away")

    monkeypatch.setattr(client.mlflow, "finalize_logged_model", lose_answer)
    with pytest.raises(ConnectionError):
        record.send(client)
    monkeypatch.undo()
    monkeypatch.setattr(client.mlflow, "log_model_artifacts", None)  # nothing is uploaded twice
    record.send(client)
    record.send(client)
    run = client.get_run(run_id)
    model = client.find_logged_model(run, "model")
    assert (model.name, model.source_run_id, model.status) == ("model", run_id, "READY")
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    about = Model.load(model.artifact_location)
    assert (about.run_id, about.model_id, about.artifact_path) == (run_id, model.model_id, model.artifact_location)
    assert about.model_uuid == model.model_id


def test_log_batch_of_a_model_logs_its_metrics_to_the_model_too(run_id):
    client = TrackingClient()
    experiment_id = client.get_run(run_id).info.experiment_id
    model, other = (
        client.mlflow.create_logged_model(experiment_id, name=name, source_run_id=run_id) for name in (MODEL, "served")
    )
    for of_model, name in ((True, "test_accuracy"), (False, "loss")):
        LogBatch(run_id, metrics=[Point(name, 0.5, 7, 3)], of_model=of_model).send(client)
    (metric,) = client.get_logged_model(model.model_id).metrics
    assert (metric.key, metric.value, metric.timestamp, metric.step) == ("test_accuracy", 0.5, 7, 3)
    assert (metric.model_id, metric.run_id) == (model.model_id, run_id)
    assert not client.get_logged_model(other.model_id).metrics
    assert client.get_run(run_id).data.metrics == {"test_accuracy": 0.5, "loss": 0.5}


@pytest.mark.parametrize(("once", "kept"), [(True, [0.5, 0.7]), (False, [0.5, 0.6, 0.7])])
def test_log_batch_as_retried_leaves_out_the_points_that_have_arrived(run_id, once, kept):
    client = TrackingClient()
    LogBatch(run_id, metrics=[Point("loss", 0.5, 1, 1), Point("loss", 0.5, 1, 2)]).send(client)
    retried = (Point("loss", 0.5, 1, 1), Point("loss", 0.6, 2, 1), Point("loss", 0.7, 2, 3))
    LogBatch(run_id, metrics=retried, one_point_a_step=once).as_retried().send(client)
    assert sorted(point.value for point in client.get_metric_history(run_id, "loss")) == sorted([0.5, *kept])


def test_log_table_names_each_table_once_for_the_evaluation_view(run_id, tmp_path, monkeypatch):
    client = TrackingClient()
    for name in ("a.json", "b.json", "a.json"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
        LogTable(run_id).with_files(folder).send(client)

    def listed():
        return json.loads(client.get_run(run_id).data.tags[Tag.LOGGED_ARTIFACTS])

    assert listed() == [{"path": "a.json", "type": "table"}, {"path": "b.json", "type": "table"}]
    assert sorted(client.list_artifacts(run_id)) == ["a.json", "b.json"]
    monkeypatch.setattr(records, "TAG_CHARACTERS", len(json.dumps(listed())))
    (tmp_path / "a.json" / "c.json").write_text("{}")
    LogTable(run_id).with_files(tmp_path / "a.json").send(client)
    assert len(listed()) == 2, "one more would be cut"
    assert "c.json" in client.list_artifacts(run_id)


@pytest.mark.parametrize("value", ["{", "5", "null"])
def test_log_table_replaces_a_list_that_cannot_be_read(run_id, tmp_path, value):
    client = TrackingClient()
    client.set_tags(run_id, {Tag.LOGGED_ARTIFACTS: value})
    (tmp_path / "a.json").write_text("{}")
    LogTable(run_id, files=("a.json",), folder=tmp_path).send(client)
    tags = client.get_run(run_id).data.tags
    assert json.loads(tags[Tag.LOGGED_ARTIFACTS]) == [{"path": "a.json", "type": "table"}]


def test_log_dataset_and_log_input_model_are_inputs_of_the_run(run_id):
    client = TrackingClient()
    model = client.mlflow.create_logged_model(client.get_run(run_id).info.experiment_id, name="model")
    LogDataset(run_id, {"name": "digits", "digest": "d0", "source_type": "local", "source": "{}"}, "train").send(client)
    LogInputModel(run_id, model.model_id).send(client)
    inputs = client.get_run(run_id).inputs
    (data,) = inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", "d0")
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "train")]
    assert [one.model_id for one in inputs.model_inputs] == [model.model_id]


@pytest.mark.parametrize(
    ("status", "more", "ended"),
    [
        ("RUNNING", {}, "FINISHED"),
        ("RUNNING", {"keep_status": True}, "FINISHED"),
        ("RUNNING", {"process": {Tag.PROCESS: "1"}}, "FINISHED"),
        ("RUNNING", {"process": {Tag.PROCESS: "2"}}, "RUNNING"),
        # of a process that has not claimed the run
        ("RUNNING", {"process": {Tag.HOST: "a"}}, "FINISHED"),
        ("KILLED", {"keep_status": True}, "KILLED"),
        ("KILLED", {}, "FINISHED"),
    ],
)
def test_end_run_ends_the_run_unless_another_process_has_it_or_its_status_is_kept(run_id, status, more, ended):
    client = TrackingClient()
    client.set_tags(run_id, {Tag.PROCESS: "1"})
    client.set_run_status(run_id, status)
    EndRun(run_id, "FINISHED", 123_000, {Tag.OUTCOME: "finished"}, **more).send(client)
    run = client.get_run(run_id)
    assert run.info.status == ended
    assert (run.info.end_time == 123_000) == (ended == "FINISHED")
    assert (Tag.OUTCOME in run.data.tags) == (ended != "RUNNING")


@pytest.mark.parametrize(
    "record",
    [
        LogBatch("a", (Point("loss", 0.5, 1, 2),), {"depth": "3"}, {"device": "cpu"}, True, True),
        LogTable("a", files=("b.json",)),
        LogModel("a", "model", {"temperature": "1.4"}, files=("MLmodel",)),
        EndRun("a", "FINISHED", 1, {"b": "c"}, {"process": "1"}, True),
        # what is not given has a value that can be read again
        LogBatch("a"),
        LogFiles("a"),
        LogModel("a", "model"),
        EndRun("a", "FINISHED", 1, {}),
        *(LogDataset("a", {"name": "digits"}, "train"), LogInputModel("a", "m-1"), RegisterVersion("a", "pets", {})),
        *(RegisterCalibrated("a", "pets", "1", "1.4"), WriteModelCard("a"), ForwardSpool("a")),
    ],
    ids=repr,
)
def test_from_json_returns_the_record_that_was_kept(record):
    kept = json.loads(json.dumps(record.to_json()))
    assert from_json(kept) == record
    assert not kept.keys() & {"retried", "write", "folder"}


def test_coalesce_joins_at_most_two_hundred():
    assert coalesce([LogBatch("a", tags={str(number): ""}) for number in range(MAX_RECORDS + 1)])[1] == 200


def test_with_files_takes_all_files_of_a_folder_in_order(tmp_path):
    for name in ("b.txt", "a/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    record = LogFiles("a", write=lambda folder: None).with_files(tmp_path)
    assert record == LogFiles("a", files=("a/c.txt", "b.txt"), folder=tmp_path) and record.write is None
    assert record.complete_folder() == tmp_path
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="its files are gone: empty"):
        LogFiles("a").with_files(tmp_path / "empty").complete_folder()


def test_forward_spool_sends_what_another_process_has_left_of_the_run(run_id, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Spool(run_id).put(LogBatch(run_id, tags={"left": "yes"}))
    ForwardSpool(run_id).send(TrackingClient())
    assert mlflow.get_run(run_id).data.tags["left"] == "yes"
    assert not Spool(run_id).folder.exists()


def test_log_model_has_the_parameters_of_its_run_and_is_an_output_at_step_0(run_id, tmp_path):
    client = TrackingClient()
    client.log_batch(run_id, params={"depth": "8"})
    folder = tmp_path / "files"
    folder.mkdir()
    Model().save(str(folder / "MLmodel"))
    (folder / "weights.txt").write_text("1")
    LogModel(run_id, "model").with_files(folder).send(client)
    run = client.get_run(run_id)
    model = client.find_logged_model(run, "model")
    assert model.params == {"depth": "8"} and model.experiment_id == run.info.experiment_id
    assert [output.step for output in run.outputs.model_outputs] == [0]
    assert sorted(json.loads(model.tags[Tag.FILE_DIGESTS])) == ["MLmodel", "weights.txt"]


def test_log_batch_of_a_run_without_a_model_logs_its_metrics_to_the_run_alone(run_id):
    LogBatch(run_id, metrics=[Point("test_accuracy", 0.5, 7, 0)], of_model=True).send(TrackingClient())
    assert mlflow.get_run(run_id).data.metrics == {"test_accuracy": 0.5}


def test_log_batch_that_is_refused_for_its_metrics_raises(run_id):
    batch = LogBatch(run_id, metrics=[Point("not/a\nname", 1.0, 1, 1)], params={"depth": "8"})
    with pytest.raises(TrackingError):
        batch.send(TrackingClient())


@pytest.mark.parametrize("kept", [None, [], {}, {"kind": 3}, {"kind": "Record", "run_id": "a"}])
def test_from_json_of_no_record_says_so(kept):
    with pytest.raises(
        ValueError, match="^(it is no record|records of the kind 'Record' are unknown to this version)$"
    ):
        from_json(kept)


def test_from_json_of_a_record_of_another_version_names_the_field():
    kept = EndRun("a", "FINISHED", 1, {}).to_json()
    with pytest.raises(ValueError, match="^it is no EndRun of this version: end_time: "):
        from_json(kept | {"end_time": "soon"})
    with pytest.raises(ValueError, match="^it is no EndRun of this version: newer: "):
        from_json(kept | {"newer": 1})


def test_records_of_a_registration_make_versions_and_a_card_of_the_run_s_models(run_id):
    client = TrackingClient()
    experiment_id = client.get_run(run_id).info.experiment_id
    models = {}
    for name in (SERVED, CALIBRATED):
        model = client.mlflow.create_logged_model(experiment_id, name=name, source_run_id=run_id)
        models[name] = client.mlflow.finalize_logged_model(model.model_id, "READY")
    RegisterVersion(run_id, "pets", {"data": "digits"}).send(client)
    RegisterCalibrated(run_id, "pets", "1", "1.4").send(client)
    WriteModelCard(run_id).send(client)
    first, second = (client.get_model_version("pets", number) for number in "12")
    assert (first.run_id, first.source, first.tags["data"]) == (run_id, f"models:/{models[SERVED].model_id}", "digits")
    assert second.source == f"models:/{models[CALIBRATED].model_id}"
    assert (second.tags[Tag.TEMPERATURE], second.tags[Tag.CALIBRATED_FROM]) == ("1.4", "version 1")
    assert "models:/pets/1" in mlflow.artifacts.load_text(f"runs:/{run_id}/model_card.md")
    assert "models:/pets/2" in second.description
