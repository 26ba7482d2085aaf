"""Tests of what a run logs to a real MLflow store."""

import hashlib
import json
import sqlite3
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model

import pipeline.tracking.lifecycle
import pipeline.tracking.run
from pipeline.model.conv_mixer import conv_mixer
from pipeline.runtime import clock
from pipeline.runtime.errors import Deleted, NotFound, Rejected, Unavailable, UsageError
from pipeline.runtime.process import this_process
from pipeline.serving.packaging import save_keras
from pipeline.tracking import ownership
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.lifecycle import start_run
from pipeline.tracking.models import CALIBRATED
from pipeline.tracking.outbox import records
from pipeline.tracking.outbox.outbox import Outbox
from pipeline.tracking.run import TrackedRun
from pipeline.tracking.tags import Role, RunOutcome, Tag


@pytest.fixture(autouse=True)
def no_other_machines(monkeypatch):
    """Do not wait for the claims of other machines."""
    monkeypatch.setattr(ownership, "CLAIM_SECONDS", 0.0)


def found(run_id):
    return mlflow.get_run(run_id)


def test_set_name_replaces_a_generated_name_only(opened_by_mlflow):
    with start_run(role=Role.RUN) as run:
        assert run.set_name("smoke 8/1 k3 p2") == "smoke 8/1 k3 p2"
    assert found(run.id).info.run_name == "smoke 8/1 k3 p2"
    with start_run(role=Role.RUN, resume=found(opened_by_mlflow)) as run:
        assert run.set_name("another") == "smoke 8/1 k3 p2"
    assert found(run.id).info.run_name == "smoke 8/1 k3 p2"


def test_set_name_numbers_a_name_that_another_run_has(store):
    names = []
    for name in ("digits depth=6", "digits depth=6", "digits depth=6", "digits depth=60", "it's 100%_"):
        with start_run(role=Role.RUN) as run:
            names.append(run.set_name(name))
    assert names == ["digits depth=6", "digits depth=6 #2", "digits depth=6 #3", "digits depth=60", "it's 100%_"]


def test_log_image_twice_at_one_step_leaves_one_image_that_mlflow_finds(store):
    with start_run(role=Role.RUN) as run:
        for size in (1, 2):
            run.log_image("curves", Figure(figsize=(size, 1), dpi=100), step=3)
        run.log_image("curves", Figure(figsize=(1, 1)), step=4)
        run.log_figure("plots/curves.png", Figure(figsize=(3, 1), dpi=100), key="kernels/block_1")
    assert found(run.id).data.tags["mlflow.loggedImages"] == "True"
    names = [file.path for file in mlflow.MlflowClient().list_artifacts(run.id, "images")]
    assert len(names) == 2 * 3
    (image,) = (name for name in names if "curves+step+3" in name and name.endswith(".png"))
    assert mlflow.artifacts.load_image(f"runs:/{run.id}/{image}").size == (200, 100)
    assert mlflow.artifacts.load_image(f"runs:/{run.id}/plots/curves.png").size == (300, 100)


def test_log_epoch_logs_metrics_at_the_step_of_the_epoch(store):
    with start_run(role=Role.RUN) as run:
        run.log_epoch(1, {"loss": 2.0})
        run.log_epoch(2, {"loss": 1.0})
    history = mlflow.MlflowClient().get_metric_history(run.id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.0), (2, 1.0)]


def test_metric_that_is_logged_again_after_the_clock_was_set_back_has_its_new_value(store, monkeypatch):
    with start_run(role=Role.RUN) as run:
        run.log_metrics({"trials": 2.0})
        run.wait_until_logged(1.0)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now - 3600)
        run.log_metrics({"trials": 3.0})
    assert found(run.id).data.metrics["trials"] == 3.0
    assert found(run.id).info.end_time >= found(run.id).info.start_time


def test_metric_that_is_logged_again_within_a_millisecond_has_its_new_value(store, monkeypatch):
    monkeypatch.setattr(clock, "seconds_since_boot", lambda: 1.0)
    with start_run(role=Role.RUN) as run:
        for value in (3.0, 2.0):
            run.log_metrics({"trials": value})
            run.wait_until_logged(1.0)
    assert found(run.id).data.metrics["trials"] == 2.0


def test_resumed_run_logs_no_second_point_and_no_second_model(store):
    model = conv_mixer((8, 8, 1), 3, filters=4, depth=1, kernel_size=3, patch_size=2)
    example = np.zeros((1, 8, 8, 1), np.float32)
    with start_run(role=Role.RUN) as run:
        run.log_epoch(1, {"loss": 2.0})
        run.log_epoch(2, {"loss": 1.0})
        run.log_model(
            partial(save_keras, model=model, example=example, classes=["cat", "dog", "owl"], resize="stretch")
        )
        run.log_results({"test_loss": 0.5})
    with start_run(role=Role.RUN, resume=found(run.id)) as again:
        assert again.load_logged_state() == found(run.id).info.run_name
        assert again.log_epoch(2, {"loss": 1.0, "val_loss": 3.0}) == set()
        assert again.log_epoch(2, {"loss": 1.1}) == {"loss"}
        assert again.log_epoch(3, {"loss": 0.5}) == set()
        again.log_model(
            partial(save_keras, model=model, example=example, classes=["cat", "dog", "owl"], resize="stretch")
        )
        again.log_results({"test_loss": 0.5, "test_accuracy": 1.0})
    client = mlflow.MlflowClient()
    history = {name: client.get_metric_history(run.id, name) for name in found(run.id).data.metrics}
    assert {name: [(point.step, point.value) for point in points] for name, points in history.items()} == {
        "loss": [(1, 2.0), (2, 1.0), (3, 0.5)],
        "val_loss": [(2, 3.0)],
        "test_loss": [(0, 0.5)],
        "test_accuracy": [(0, 1.0)],
    }
    assert len(found(run.id).outputs.model_outputs) == 1
    assert again.model_uri == run.model_uri


def test_log_results_twice_logs_each_metric_once(store):
    with start_run(role=Role.RUN) as run:
        run.log_results({"test_accuracy": 0.5})
        run.log_results({"test_accuracy": 0.5, "parameters": 7})
    assert len(mlflow.MlflowClient().get_metric_history(run.id, "test_accuracy")) == 1
    assert found(run.id).data.metrics["parameters"] == 7


def test_log_epoch_of_a_run_that_has_been_deleted_raises_the_command_that_restores_it(store):
    with pytest.raises(Deleted, match="`mlflow runs restore --run-id .*` restores it"), start_run(role=Role.RUN) as run:
        mlflow.delete_run(run.id)
        run.log_epoch(1, {"loss": 2.0})
        run.outbox.flush()
        run.log_epoch(2, {"loss": 1.0})
    mlflow.MlflowClient().restore_run(run.id)
    mlflow.MlflowClient().set_terminated(run.id)


def test_log_epoch_after_a_rejection_raises_it(store):
    with pytest.raises(Rejected, match="depth"), start_run(role=Role.RUN) as run:
        run.outbox.put(records.LogBatch(run.id, params={"depth": "3"}))
        run.outbox.flush()
        run.outbox.put(records.LogBatch(run.id, params={"depth": "4"}))
        run.outbox.flush()
        run.log_epoch(2, {"loss": 1.0})


def test_log_table_writes_csv(store):
    with start_run(role=Role.RUN) as run:
        run.log_table("table.csv", pd.DataFrame({"class": ["a, b"], "recall": [0.5]}))
    assert mlflow.artifacts.load_text(f"runs:/{run.id}/table.csv") == 'class,recall\n"a, b",0.5\n'


def test_log_table_twice_leaves_one_table_that_mlflow_finds_with_its_rows_once(store):
    table = pd.DataFrame({"class": ["=a", "b"], "recall": [0.5, float("nan")]})
    with start_run(role=Role.RUN) as run:
        for _ in range(2):
            run.log_table("per_class.csv", table, view=table)
        run.log_table("more/per_class.csv", table, view=table.head(1))
    with start_run(role=Role.RUN) as other:
        other.set_tags({Tag.LOGGED_ARTIFACTS: "no list"})
        other.log_table("per_class.csv", table, view=table)
    assert json.loads(found(other.id).data.tags["mlflow.loggedArtifacts"])[0]["path"] == "per_class.json"
    paths = [entry["path"] for entry in json.loads(found(run.id).data.tags["mlflow.loggedArtifacts"])]
    assert paths == ["per_class.json", "more/per_class.json"]
    loaded = mlflow.load_table("per_class.json", run_ids=[run.id])
    assert loaded["class"].tolist() == ["=a", "b"] and loaded["recall"].isna().tolist() == [False, True]
    assert "per_class.csv" in [file.path for file in mlflow.MlflowClient().list_artifacts(run.id)]


@pytest.mark.parametrize(("source", "kind"), [("/some/folder", "local"), ("scikit-learn load_digits", "code")])
def test_log_dataset_logs_digest_source_shape_and_class_sizes(store, source, kind):
    digest = f"0123456789{kind}"  # MLflow keeps one data set for each name and digest
    with start_run(role=Role.RUN) as run:
        run.log_dataset(
            name="digits train",
            source=source,
            digest=digest,
            context="train",
            shape=(8, 8, 1),
            class_sizes={"a": 3, "b": 0},
        )
    (given,) = found(run.id).inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest, given.dataset.source_type) == (
        "digits train",
        digest,
        kind,
    )
    assert source in given.dataset.source
    assert "[-1, 8, 8, 1]" in given.dataset.schema
    assert '"name": "image"' in given.dataset.schema and "uint8" in given.dataset.schema
    assert json.loads(given.dataset.profile) == {"images": 3, "class_sizes": {"a": 3, "b": 0}}
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "train")]


def test_log_model_takes_raw_pixels_and_holds_no_pickle(store):
    model = conv_mixer((8, 8, 1), 3, filters=4, depth=1, kernel_size=3, patch_size=2)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.float32)
    with start_run(role=Role.RUN) as run:
        run.log_model(
            partial(save_keras, model=model, example=images[:1], classes=["cat", "dog", "owl"], resize="stretch")
        )
        run.log_results({"test_accuracy": 0.5})
    uri = run.model_uri
    logged = mlflow.models.get_model_info(uri)
    assert logged.metadata == {"classes": ["cat", "dog", "owl"], "resize": "stretch", "image_size": [8, 8]}
    assert logged.signature.inputs.inputs[0].shape == (-1, 8, 8, 1)
    assert logged.signature.outputs.inputs[0].shape == (-1, 3)
    files = [path.name for path in Path(mlflow.artifacts.download_artifacts(uri)).rglob("*")]
    assert "model.keras" in files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".cloudpickle"))]
    np.testing.assert_allclose(mlflow.pyfunc.load_model(uri).predict(images), model(images), atol=1e-6)
    assert {metric.key: metric.value for metric in mlflow.get_logged_model(logged.model_id).metrics} == {
        "test_accuracy": 0.5
    }


def test_load_logged_state_waits_for_pending_records_of_a_killed_process(store, monkeypatch):
    client, send = mlflow.MlflowClient(), records.LogBatch.send
    run_id = client.create_run(mlflow.get_experiment_by_name("mine").experiment_id).info.run_id

    def away(*_):
        raise ConnectionError

    monkeypatch.setattr(records.LogBatch, "send", away)
    killed = TrackedRun(run_id, Outbox(run_id), client.get_run(run_id))
    killed.log_results({"test_accuracy": 0.5})
    killed.outbox.close()

    def slow(*arguments):
        time.sleep(0.5)
        send(*arguments)

    monkeypatch.setattr(records.LogBatch, "send", slow)
    resumed = TrackedRun(run_id, Outbox(run_id), client.get_run(run_id))
    resumed.load_logged_state()
    resumed.log_results({"test_accuracy": 0.5, "test_loss": 2.0})
    assert resumed.outbox.flush() == 0
    resumed.outbox.close()
    client.set_terminated(run_id)
    histories = {name: client.get_metric_history(run_id, name) for name in ("test_accuracy", "test_loss")}
    assert {name: len(points) for name, points in histories.items()} == {"test_accuracy": 1, "test_loss": 1}


@pytest.fixture
def unanswered(monkeypatch):
    """Has MLflow's next so many answers about figures fail as they do where its server is being restarted."""

    def fail(times):
        left, ask = [None] * times, mlflow.MlflowClient.get_metric_history

        def answer(*arguments):
            if left:
                left.pop()
                raise MlflowException("API request to http://127.0.0.1:5000 failed: Connection refused")
            return ask(*arguments)

        monkeypatch.setattr(mlflow.MlflowClient, "get_metric_history", answer)

    monkeypatch.setattr(pipeline.tracking.run, "PAUSES", (0.01,))
    return fail


def test_load_logged_state_retries_while_the_server_restarts(store, unanswered):
    with start_run(role=Role.RUN) as run:
        run.log_epoch(1, {"loss": 2.0})
    unanswered(3)
    with start_run(role=Role.RUN, resume=found(run.id)) as again:
        again.load_logged_state()
        assert again.log_epoch(1, {"loss": 2.5}) == {"loss"}
    assert found(run.id).info.status == "FINISHED"


def test_load_logged_state_without_a_server_raises_usage_error(store, unanswered, monkeypatch):
    with start_run(role=Role.RUN) as run:
        run.log_epoch(1, {"loss": 2.0})
    unanswered(10**6)
    monkeypatch.setattr(pipeline.tracking.run, "PATIENCE_SECONDS", 0.1)
    with (
        pytest.raises(UsageError, match="the tracking store must be there and writable.*Connection refused"),
        start_run(role=Role.RUN, resume=found(run.id)) as again,
    ):
        again.load_logged_state()
    monkeypatch.undo()
    assert found(run.id).info.status == "FAILED"


def start_in(experiment_id):
    return start_run(role=Role.RUN, experiment_id=experiment_id)


def test_artifact_root_that_cannot_be_written_is_refused_before_the_training(store, tmp_path):
    (tmp_path / "file").touch()
    experiment_id = mlflow.create_experiment("unwritable", artifact_location=str(tmp_path / "file" / "artifacts"))
    with (
        pytest.raises(UsageError, match="the artifacts of a run must be writable: ") as refused,
        start_in(experiment_id) as run,
    ):
        run.log_text("config.yaml", "depth: 2")
        run.check_artifacts_writable()
        raise AssertionError("it was accepted")
    assert str(tmp_path / "file") in str(refused.value) and "\n" not in str(refused.value)
    assert found(run.id).info.status == "FAILED"


def test_artifact_root_that_can_be_written_is_accepted_with_nothing_added(store):
    with start_run(role=Role.RUN) as run:
        run.log_text("config.yaml", "depth: 2")
        run.check_artifacts_writable()
        assert [file.path for file in mlflow.MlflowClient().list_artifacts(run.id)] == ["config.yaml"]


@pytest.mark.parametrize("is_available", [True, False])
def test_artifact_store_that_fails_is_refused_while_the_tracking_server_answers(store, monkeypatch, is_available):
    monkeypatch.setattr(pipeline.tracking.run, "ARTIFACT_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(pipeline.tracking.lifecycle, "STOP_SECONDS", 0.1)
    monkeypatch.setattr(pipeline.tracking.run, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(TrackingClient, "is_available", lambda self: is_available)

    def fail(self, client):
        raise ConnectionError("nobody there")

    with start_run(role=Role.RUN) as run, monkeypatch.context() as failing:
        failing.setattr(records.LogFiles, "_send", fail)
        run.log_text("config.yaml", "depth: 2")
        if is_available:
            with pytest.raises(UsageError, match="nobody there"):
                run.check_artifacts_writable()
        else:
            run.check_artifacts_writable()


def test_artifact_store_that_takes_long_is_not_waited_for(store, monkeypatch):
    monkeypatch.setattr(pipeline.tracking.run, "ARTIFACT_SECONDS", 0.2)
    answer = threading.Event()
    with start_run(role=Role.RUN) as run, monkeypatch.context() as slow:
        slow.setattr(records.LogFiles, "_send", lambda *arguments: answer.wait(60))
        run.log_text("config.yaml", "depth: 2")
        began = time.monotonic()
        run.check_artifacts_writable()
        assert time.monotonic() - began < 30
        answer.set()


def test_wait_until_logged_waits_once_for_a_server_that_does_not_answer(store, monkeypatch):
    def fail(self, client):
        raise ConnectionError("nobody there")

    with start_run(role=Role.RUN) as run, monkeypatch.context() as failing:
        failing.setattr(records.LogFiles, "_send", fail)
        run.log_text("a.txt", "text")
        began = time.monotonic()
        run.wait_until_logged(0.5)
        assert time.monotonic() - began >= 0.5
        began = time.monotonic()
        run.wait_until_logged(60)
        assert time.monotonic() - began < 30


@pytest.fixture
def tracked(store):
    """Return an open run and MLflow's client, without a heartbeat."""
    client = mlflow.MlflowClient()
    run_id = client.create_run(mlflow.get_experiment_by_name("mine").experiment_id).info.run_id
    run = TrackedRun(run_id, Outbox(run_id), client.get_run(run_id))
    yield run, client
    run.outbox.close()
    client.set_terminated(run_id)


def test_log_params_leaves_those_that_mlflow_run_has_logged_as_they_were_typed(opened_by_mlflow):
    with start_run(role=Role.RUN) as run:
        run.log_params({"learning_rate": "0.001", "depth": "3", "comment": "x" * 10_000})
    assert run.id == opened_by_mlflow
    assert found(run.id).data.params == {"learning_rate": "1e-3", "depth": "3", "comment": "x" * 6000}


@pytest.mark.parametrize(
    ("name", "status", "is_its_model"),
    [("model", "READY", True), ("model", "FAILED", False), ("served", "READY", False)],
)
def test_load_logged_state_finds_a_complete_model_of_the_network(tracked, name, status, is_its_model):
    run, client = tracked
    model = client.create_logged_model(run.experiment_id, name=name, source_run_id=run.id)
    client.finalize_logged_model(model.model_id, status)
    client.log_outputs(run.id, [LoggedModelOutput(model.model_id, step=0)])
    run.load_logged_state()
    assert run.model_uri == (model.model_uri if is_its_model else None)
    run.log_results({"test_accuracy": 0.5})
    run.outbox.flush()
    assert bool(client.get_logged_model(model.model_id).metrics) == is_its_model


def test_input_model_file_and_description_are_logged_to_the_run(tracked, tmp_path):
    run, client = tracked
    model = client.create_logged_model(run.experiment_id, name="model")
    (tmp_path / "a.txt").write_text("a")
    run.log_input_model(model.model_id)
    run.log_file("some/b.txt", tmp_path / "a.txt")
    run.set_description("# Flowers")
    assert run.outbox.flush() == 0
    assert [given.model_id for given in found(run.id).inputs.model_inputs] == [model.model_id]
    assert mlflow.artifacts.load_text(f"runs:/{run.id}/some/b.txt") == "a"
    assert found(run.id).data.tags[Tag.DESCRIPTION] == "# Flowers"


def test_system_metrics_of_an_interrupted_run_may_come_again(tracked):
    run, client = tracked
    client.log_metric(run.id, "system/cpu", 0.5, step=3)
    client.log_metric(run.id, "loss", 0.5, step=3)
    run.load_logged_state()
    assert run.log_epoch(3, {"loss": 0.25, "system/cpu": 0.25}) == {"loss"}


def test_end_ends_the_runs_below_too_with_the_reason_without_a_password(tracked):
    run, client = tracked
    run.fold_run_id, run.project_run_id, other = (client.create_run(run.experiment_id).info.run_id for _ in range(3))
    run.end(RunOutcome.STOPPED, "https://me:secret@host " + "x" * 10_000)
    assert run.outbox.flush() == 0
    for run_id in (run.id, run.fold_run_id, run.project_run_id):
        tags = found(run_id).data.tags
        assert (found(run_id).info.status, tags[Tag.OUTCOME]) == ("KILLED", "stopped")
        assert "secret" not in tags[Tag.OUTCOME_REASON] and len(tags[Tag.OUTCOME_REASON]) == 5000
    assert found(other).info.status == "RUNNING"
    client.set_terminated(other)


def test_end_of_a_run_that_another_process_has_claimed_leaves_it_open(tracked):
    run, client = tracked
    run.is_claimed = True
    client.set_tag(run.id, Tag.PROCESS, "1")
    run.end(RunOutcome.FINISHED, "")
    run.is_superseded, run.is_claimed = True, False
    run.end(RunOutcome.FINISHED, "")
    assert run.outbox.flush() == 0
    assert found(run.id).info.status == "RUNNING"


def test_served_and_calibrated_models_are_registered_once_the_run_has_finished(tracked):
    run, client = tracked
    assert run.describe_registration() is None
    save = Model().save

    def write(folder):
        save(str(folder / "MLmodel"))

    run.log_model(write)
    run.register_model("pets", write, classes=["cat", "dog"], tags={"test_accuracy": "0.5"})
    assert run.outbox.flush() == 0 and not client.search_registered_models("name = 'pets'")
    run.end(RunOutcome.FINISHED, "")
    run.log_calibrated_model(write, temperature="1.4", version=("pets", "1"))
    run.wait_until_logged(60)
    first, second = (client.get_model_version("pets", number) for number in "12")
    digest = hashlib.sha256(b'["cat", "dog"]').hexdigest()
    assert (first.tags["test_accuracy"], first.tags[Tag.CLASSES_DIGEST]) == ("0.5", digest)
    assert second.tags[Tag.TEMPERATURE] == "1.4"
    model = TrackingClient().find_logged_model(found(run.id), CALIBRATED)
    assert second.source == f"models:/{model.model_id}" and model.tags[Tag.TEMPERATURE] == "1.4"
    assert run.describe_registration() == "models:/pets/1 is the champion: there was no champion"
    assert run.model_uri == "models:/pets/1"
    assert "pets" in mlflow.artifacts.load_text(f"runs:/{run.id}/model_card.md")


def test_tracked_run_knows_what_mlflow_had_when_it_was_opened(tracked):
    run, _ = tracked
    info = found(run.id).info
    assert (run.experiment_id, run.artifact_uri, run.name) == (info.experiment_id, info.artifact_uri, info.run_name)
    blind = TrackedRun(run.id, run.outbox)
    assert (blind.experiment_id, blind.artifact_uri, blind.name, blind.model_uri) == ("", "", "", None)
    for one in (run, blind):
        assert (one.is_superseded, one.is_claimed, one.project_run_id, one.fold_run_id) == (False, False, None, None)
        assert one.notices == []
    blind.log_params({"depth": "3"})
    assert blind.set_name("mine") == blind.name == "mine"
    run.outbox.flush()
    assert (found(run.id).info.run_name, found(run.id).data.params) == ("mine", {"depth": "3"})


def test_set_name_without_a_server_takes_the_name_as_it_is(tracked, monkeypatch):
    run, _ = tracked
    with monkeypatch.context() as patch:
        patch.setattr(TrackingClient, "unique_run_name", raising(Unavailable("away")))
        assert run.set_name("mine") == "mine"
    run.outbox.flush()
    assert found(run.id).info.run_name == "mine"


def raising(error):
    """Return a function that raises an error."""

    def fail(*arguments, **options):
        raise error

    return fail


def test_points_are_logged_at_this_moment_and_summaries_at_step_0(tracked):
    run, client = tracked
    before = int(1000 * time.time())
    run.log_epoch(7, {"loss": 2.0})
    run.log_results({"test_accuracy": 1})
    run.log_metrics({"trials": 3.0})
    run.log_metrics({"trials": 4.0}, step=5)
    run.log_system_metrics({"system/cpu": 0.5}, 9)
    run.log_model_metrics({"evaluation/a": 0.5})
    run.log_model_metrics({"evaluation/b": 0.5}, step=2)
    run.outbox.flush()
    names = ("loss", "test_accuracy", "trials", "system/cpu", "evaluation/a", "evaluation/b")
    points = {name: client.get_metric_history(run.id, name) for name in names}
    assert {name: [(point.step, point.value) for point in of_name] for name, of_name in points.items()} == {
        "loss": [(7, 2.0)],
        "test_accuracy": [(0, 1.0)],
        "trials": [(0, 3.0), (5, 4.0)],
        "system/cpu": [(9, 0.5)],
        "evaluation/a": [(0, 0.5)],
        "evaluation/b": [(2, 0.5)],
    }
    # by the clock of the run, which never goes back
    assert all(abs(point.timestamp - before) < 60_000 for of_name in points.values() for point in of_name)


def test_log_epoch_names_the_metrics_that_have_another_value_at_this_epoch(tracked):
    run, _ = tracked
    assert run.log_epoch(1, {"loss": 2.0, "accuracy": 0.5}) == set()
    assert run.log_epoch(1, {"loss": 2.0, "accuracy": 0.25, "val_loss": 1.0}) == {"accuracy"}
    assert run.log_epoch(2, {"loss": 3.0}) == set()
    run.outbox.flush()
    assert found(run.id).data.metrics == {"loss": 3.0, "accuracy": 0.5, "val_loss": 1.0}


def test_metrics_of_the_run_are_those_of_its_model_once_it_has_logged_one(tracked):
    run, client = tracked
    run.log_results({"before": 0.5})
    for _ in range(2):
        run.log_model(lambda folder: Model().save(str(folder / "MLmodel")))
    run.log_results({"test_accuracy": 0.5})
    run.log_metrics({"trials": 3.0})
    run.outbox.flush()
    (output,) = found(run.id).outputs.model_outputs
    assert [metric.key for metric in client.get_logged_model(output.model_id).metrics] == ["test_accuracy"]
    assert run.model_uri is None
    run.wait_until_logged(60)
    assert run.model_uri == client.get_logged_model(output.model_id).model_uri


def test_log_figure_without_a_key_logs_two_files_and_no_image(tracked):
    run, client = tracked
    run.log_figure("plots/a.png", Figure(figsize=(1, 1)))
    run.outbox.flush()
    assert sorted(file.path for file in client.list_artifacts(run.id, "plots")) == ["plots/a.png", "plots/a.svg"]
    assert [file.path for file in client.list_artifacts(run.id)] == ["plots"]
    assert Tag.LOGGED_IMAGES not in found(run.id).data.tags
    run.log_figure("plots/b.png", Figure(figsize=(1, 1)), key="curves")
    run.outbox.flush()
    assert found(run.id).data.tags[Tag.LOGGED_IMAGES] == "True"
    assert all("/curves+step+0+" in file.path for file in client.list_artifacts(run.id, "images"))


def test_log_table_with_a_view_logs_it_as_json_beside_the_csv(tracked):
    run, client = tracked
    table = pd.DataFrame({"class": ["a", "b"], "recall": [0.5, 1.0]})
    run.log_table("some/per_class.csv", table, view=table[["class"]])
    run.outbox.flush()
    assert sorted(file.path for file in client.list_artifacts(run.id, "some")) == [
        "some/per_class.csv",
        "some/per_class.json",
    ]
    text = mlflow.artifacts.load_text(f"runs:/{run.id}/some/per_class.json")
    assert json.loads(text) == {"columns": ["class"], "data": [["a"], ["b"]]}


def test_calibrated_model_without_a_version_is_logged_and_not_registered(tracked):
    run, client = tracked
    run.log_calibrated_model(
        lambda folder: Model().save(str(folder / "MLmodel")), temperature="1.4, on 9 images", version=None
    )
    run.end(RunOutcome.FINISHED, "")
    assert run.outbox.flush() == 0
    run.raise_rejection()
    model = TrackingClient().find_logged_model(found(run.id), CALIBRATED)
    assert model.tags[Tag.TEMPERATURE] == "1.4, on 9 images"
    assert Tag.REGISTERED_CALIBRATED not in found(run.id).data.tags
    # the card is that of the network's model, which it has not logged
    assert "model_card.md" not in [file.path for file in client.list_artifacts(run.id)]


@pytest.mark.parametrize("outcome", [RunOutcome.FAILED, RunOutcome.STOPPED])
def test_run_that_does_not_finish_registers_nothing_and_writes_no_card(tracked, outcome):
    run, client = tracked
    run.log_model(lambda folder: Model().save(str(folder / "MLmodel")))
    name = f"unfinished-{outcome}"
    run.register_model(name, lambda folder: Model().save(str(folder / "MLmodel")), classes=["a"], tags={})
    run.end(outcome, "why")
    assert run.outbox.flush() == 0
    assert not client.search_registered_models(f"name = '{name}'")
    assert "model_card.md" not in [file.path for file in client.list_artifacts(run.id)]
    assert (found(run.id).info.status, found(run.id).data.tags[Tag.OUTCOME_REASON]) == (outcome.status, "why")


def test_describe_registration_says_why_there_is_none(tracked, monkeypatch):
    run, _ = tracked

    def save(folder):
        Model().save(str(folder / "MLmodel"))

    with monkeypatch.context() as failing:
        failing.setattr(records.LogModel, "_send", raising(ConnectionError("nobody there")))
        run.register_model("unsent", save, classes=["a"], tags={})
        run.outbox.flush(unavailable_seconds=0.1)
        assert run.describe_registration() == ("not registered yet: it will be when the pending records have been sent")
    assert run.outbox.flush() == 0
    run.outbox.put(records.RegisterVersion("f" * 32, "unsent", {}))
    run.outbox.flush()
    assert run.describe_registration().startswith("not registered: ") and "f" * 32 not in (run.model_uri or "")
    assert run.describe_registration() is None, "MLflow has taken nothing, and has refused it once"
    assert run.model_uri is None


def test_raise_rejection_of_a_run_that_is_there_is_what_mlflow_has_refused(tracked, monkeypatch):
    run, _ = tracked
    run.outbox.put(records.LogBatch("f" * 32, tags={"a": "b"}))
    run.outbox.flush()
    with monkeypatch.context() as patch:
        patch.setattr(TrackingClient, "get_active_run", raising(Unavailable("away")))
        with pytest.raises(NotFound, match="f" * 32):
            run.raise_rejection()
    run.raise_rejection()


def test_end_names_the_moment_and_this_process_if_it_has_claimed_the_run(tracked, monkeypatch):
    run, _ = tracked
    run.is_claimed = True
    ended = []
    monkeypatch.setattr(run.outbox, "put", ended.append)
    run.end(RunOutcome.STOPPED, "by SIGTERM")
    run.is_claimed = False
    run.end(RunOutcome.FAILED, "")
    first, second = ended
    assert (first.run_id, first.status, first.process, first.keep_status) == (
        run.id,
        "KILLED",
        this_process().tags(),
        False,
    )
    assert first.tags == {Tag.OUTCOME: "stopped", Tag.OUTCOME_REASON: "by SIGTERM"}
    assert abs(first.end_time / 1000 - time.time()) < 60
    assert (second.process, second.tags) == (None, {Tag.OUTCOME: "failed"})


def test_params_and_tags_that_mlflow_would_refuse_are_cut(tracked):
    run, _ = tracked
    run.set_tags({"note": "x" * 20_000})
    run.log_params({"comment": "y" * 20_000})
    assert run.outbox.flush() == 0
    data = found(run.id).data
    assert (len(data.tags["note"]), len(data.params["comment"])) == (5000, 6000)


def test_artifacts_error_names_the_place_without_a_password_and_what_to_do(tracked):
    run, _ = tracked
    run.artifact_uri = "https://me:secret@host/a"
    run.outbox.put(records.LogBatch("f" * 32, tags={"a": "b"}))
    with pytest.raises(UsageError) as refused:
        run.check_artifacts_writable()
    text = str(refused.value)
    assert text.startswith("the artifacts of a run must be writable: https://me:***@host/a: ")
    assert text.endswith(
        "; give this user the right to write there, or use an experiment with another artifact location"
    )


def test_check_artifacts_writable_of_a_deleted_run_says_how_to_restore_it(tracked):
    run, client = tracked
    client.delete_run(run.id)
    run.set_tags({"a": "b"})
    with pytest.raises(Deleted, match=f"`mlflow runs restore --run-id {run.id}` restores it"):
        run.check_artifacts_writable()
    client.restore_run(run.id)


def test_run_waits_for_its_first_file_for_its_records_and_once_for_a_server(tracked, monkeypatch):
    run, _ = tracked
    asked = []
    monkeypatch.setattr(run.outbox, "flush", lambda **options: asked.append(options) or 0)
    run.check_artifacts_writable()
    run.wait_until_logged(7.0)
    run.wait_until_logged(7.0)
    run.load_logged_state()
    assert asked == [
        {"unavailable_seconds": 5.0, "at_most": 30.0},
        {"unavailable_seconds": 7.0},
        {"unavailable_seconds": 0.0},
        {},
    ]


def test_load_logged_state_reads_each_step_of_each_metric_and_the_name(tracked):
    run, client = tracked
    for step, value in ((1, 2.0), (2, 1.0)):
        client.log_metric(run.id, "loss", value, step=step)
    client.log_metric(run.id, "test_loss", 3.0)
    assert run.load_logged_state() == found(run.id).info.run_name
    assert run._logged == {("loss", 1): 2.0, ("loss", 2): 1.0, ("test_loss", 0): 3.0}
    assert run.model_uri is None


def test_all_runs_of_this_file_have_ended(store):
    with closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as database, database:
        (still_open,) = database.execute("select count(*) from runs where status = 'RUNNING'").fetchone()
    assert still_open == 0
