"""Logged models that are found by their URIs, checked and loaded."""

import json
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.models import Model
from mlflow.tracking import fluent
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import sha256_files
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.models import (
    BATCH_SIZE,
    CALIBRATED,
    MODEL,
    SERVED,
    LoggedModel,
    find_model,
    latest_model_uri,
    load_model,
    logged_metadata,
    logged_splits,
    resolve_model_uri,
)
from pipeline.tracking.tags import Tag
from tests.support.ports import free_port
from tests.support.registered_model import CLASSES, RESIZE, SHAPE

URIS = ["models:/colours@champion", "models:/colours/1", "models:/colours/latest", "runs:/{run}/model", "models:/{id}"]


@pytest.mark.parametrize("uri", URIS)
def test_load_model_from_each_form_of_uri_returns_the_same_network(registered_model, uri):
    client, run_id = TrackingClient(), registered_model.run_id
    uri = uri.format(run=run_id, id=find_model(client, f"runs:/{run_id}/model").model_id)
    model = load_model(client, uri)
    assert (model.classes, model.image_shape, model.resize) == (CLASSES, SHAPE, RESIZE)
    assert (model.run_id, model.model_id) == (run_id, find_model(client, uri).model_id)
    assert not model.model.compiled, "what it was trained with is not needed, and need not be importable"
    images = np.random.default_rng(0).uniform(0, 255, (4, *SHAPE))
    np.testing.assert_array_equal(model.model.predict_on_batch(images), registered_model.model.predict_on_batch(images))


def test_predict_proba_equals_the_network_over_several_batches():
    pixels = keras.Input((2, 2, 1))
    network = keras.Model(pixels, keras.layers.Softmax()(keras.layers.Flatten()(pixels)))
    model = LoggedModel(network, ("a", "b", "c", "d"), (2, 2, 1), resize="stretch", run_id="r", model_id="m-1")
    images = np.random.default_rng(0).integers(0, 3, (2 * BATCH_SIZE + 1, 2, 2, 1)).astype(np.uint8)
    probabilities = model.predict_proba(images)
    assert (probabilities.shape, probabilities.dtype) == ((len(images), 4), np.float32)
    expected = np.exp(images.reshape(len(images), 4).astype(float))
    np.testing.assert_allclose(probabilities, expected / expected.sum(axis=1, keepdims=True), rtol=1e-5)


def test_predict_proba_traces_the_network_once_for_inference_as_it_is(converted):
    pixels = keras.Input((2, 2, 1))
    network = keras.Model(pixels, keras.layers.Softmax()(keras.layers.Dropout(0.5)(keras.layers.Flatten()(pixels))))
    model = LoggedModel(network, ("a", "b", "c", "d"), (2, 2, 1), resize="stretch", run_id="r", model_id="m-1")
    for images in (1, 3):
        probabilities = model.predict_proba(np.full((images, 2, 2, 1), 255, np.uint8))
        np.testing.assert_allclose(probabilities, np.full((images, 4), 0.25), rtol=1e-6)
    assert model._traced.experimental_get_tracing_count() == 1
    assert converted == []


@pytest.mark.parametrize("name", ["model", "served"])
@pytest.mark.parametrize("part", [".keras", "MLmodel"])
def test_load_model_with_a_changed_file_is_refused(registered_model, name, part):
    client, uri = TrackingClient(), f"runs:/{registered_model.run_id}/{name}"
    folder = Path(find_model(client, uri).artifact_location)
    (file,) = [path for path in folder.rglob("*") if path.name.endswith(part)]
    content = file.read_bytes()
    file.write_bytes(content + b" ")
    try:
        with pytest.raises(UsageError, match=rf"files must be those that its run logged: .*{file.name};"):
            load_model(client, uri)
    finally:
        file.write_bytes(content)
    assert load_model(client, uri).classes == CLASSES


def test_load_model_without_digests_is_refused(registered_model):
    client = mlflow.MlflowClient()
    experiment = client.get_run(registered_model.run_id).info.experiment_id
    model = client.create_logged_model(experiment, name="other")
    client.finalize_logged_model(model.model_id, "READY")
    with pytest.raises(UsageError, match="^model must have the digests of its files"):
        load_model(TrackingClient(), f"models:/{model.model_id}")


@pytest.mark.parametrize("archives", [(), ("a.keras", "b.keras")])
def test_load_model_without_exactly_one_archive_is_refused(registered_model, tmp_path, archives):
    client = mlflow.MlflowClient()
    model = client.create_logged_model(client.get_run(registered_model.run_id).info.experiment_id, name="odd")
    Model().save(str(tmp_path / "MLmodel"))
    for name in archives:
        (tmp_path / name).write_text("")
    client.set_logged_model_tags(model.model_id, {Tag.FILE_DIGESTS: json.dumps(sha256_files(tmp_path))})
    client.log_model_artifacts(model.model_id, str(tmp_path))
    client.finalize_logged_model(model.model_id, "READY")
    uri = f"models:/{model.model_id}"
    with pytest.raises(UsageError, match=f"^model must hold one Keras archive, got {uri} with {len(archives)}$"):
        load_model(TrackingClient(), uri)


def test_load_model_that_is_not_complete_is_refused(registered_model):
    experiment = mlflow.MlflowClient().get_run(registered_model.run_id).info.experiment_id
    model = mlflow.MlflowClient().create_logged_model(experiment, name="begun")
    with pytest.raises(UsageError, match="^model must be in this tracking store, and complete, got "):
        load_model(TrackingClient(), f"models:/{model.model_id}")


@pytest.mark.parametrize(
    "uri",
    [
        "models:/nothing@champion",
        "models:/colours@nothing",
        "models:/colours/99",
        "models:/nothing/latest",
        "models:/it's/latest",
        f"models:/m-{'0' * 32}",
        f"runs:/{'0' * 32}/model",
        "runs:/{run}/nothing",
    ],
)
def test_find_model_that_does_not_exist_is_refused_in_one_line(registered_model, uri):
    uri = uri.format(run=registered_model.run_id)
    with pytest.raises(UsageError, match="^model must be in this tracking store, ") as refused:
        find_model(TrackingClient(), uri)
    assert uri in str(refused.value) and str(refused.value).isprintable()


def test_latest_model_uri_names_the_model_of_the_present_experiment(registered_model, monkeypatch):
    client = TrackingClient()
    run = client.get_run(registered_model.run_id)
    monkeypatch.setattr(fluent, "_active_experiment_id", run.info.experiment_id)
    assert latest_model_uri(client) == client.find_logged_model(run, "model").model_uri
    assert resolve_model_uri(client, "latest") == latest_model_uri(client)
    assert resolve_model_uri(client, run.info.run_id) == f"runs:/{run.info.run_id}/model"
    assert resolve_model_uri(client, "models:/colours@champion") == "models:/colours@champion"
    empty = mlflow.MlflowClient().create_experiment("without models")
    monkeypatch.setattr(fluent, "_active_experiment_id", empty)
    with pytest.raises(UsageError, match="model=latest must find a logged model: experiment without models has none"):
        latest_model_uri(client)


def test_logged_metadata_is_what_was_logged_with_the_model(registered_model):
    client = TrackingClient()
    model = find_model(client, f"runs:/{registered_model.run_id}/model")
    assert logged_metadata(client, model) == {"classes": list(CLASSES), "resize": RESIZE, "image_size": [8, 6]}


def test_logged_splits_are_the_digests_of_a_runs_data_by_what_they_were_for(store):
    tags = {Tag.DATA_FINGERPRINT: "0123"}
    run_id = mlflow.MlflowClient().create_run(mlflow.create_experiment("splits"), tags=tags).info.run_id
    for context, digest in (("training", "aa"), ("testing", "bb")):
        given = DatasetInput(Dataset("digits", digest, "code", "{}"), [InputTag(MLFLOW_DATASET_CONTEXT, context)])
        mlflow.MlflowClient().log_inputs(run_id, datasets=[given])
    assert logged_splits(TrackingClient(), run_id) == ("0123", {"training": "aa", "testing": "bb"})
    assert logged_splits(TrackingClient(), "0" * 32) == ("", {})


def test_logged_models_are_found_under_the_names_that_runs_of_earlier_versions_gave_them():
    assert (MODEL, SERVED, CALIBRATED) == ("model", "served", "calibrated")


def test_logged_splits_of_a_run_without_data_are_empty(store):
    run_id = mlflow.MlflowClient().create_run("0").info.run_id
    assert logged_splits(TrackingClient(), run_id) == ("", {})


def test_logged_metadata_of_another_program_s_model_is_empty(registered_model, tmp_path):
    client = mlflow.MlflowClient()
    model = client.create_logged_model(client.get_run(registered_model.run_id).info.experiment_id, name="foreign")
    Model().save(str(tmp_path / "MLmodel"))
    client.log_model_artifacts(model.model_id, str(tmp_path))
    assert logged_metadata(TrackingClient(), client.finalize_logged_model(model.model_id, "READY")) == {}


def test_find_model_without_a_server_names_the_store(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://127.0.0.1:{free_port()}"
    mlflow.set_tracking_uri(uri)
    try:
        with pytest.raises(UsageError, match=f"^the tracking store must be there .*{uri}.*refused"):
            find_model(TrackingClient(), f"models:/m-{'0' * 32}")
    finally:
        mlflow.set_tracking_uri(store)


def test_load_model_whose_files_are_gone_is_refused(registered_model):
    client, uri = TrackingClient(), f"runs:/{registered_model.run_id}/model"
    folder = Path(find_model(client, uri).artifact_location)
    moved = folder.rename(folder.with_name("moved"))
    try:
        with pytest.raises(UsageError, match=f"^the files of {uri} must be there"):
            load_model(client, uri)
    finally:
        moved.rename(folder)


def test_find_model_of_a_copied_version_is_the_model_that_was_copied(registered_model):
    client = mlflow.MlflowClient()
    copy = client.copy_model_version("models:/colours/1", "colours-prod")
    copy = client.copy_model_version(f"models:/colours-prod/{copy.version}", "colours-live")
    found = find_model(TrackingClient(), f"models:/colours-live/{copy.version}")
    assert found.model_id == find_model(TrackingClient(), "models:/colours/1").model_id


def test_find_model_of_a_version_whose_source_is_no_logged_model_is_refused(registered_model):
    client = mlflow.MlflowClient()
    client.create_registered_model("elsewhere")
    client.create_model_version("elsewhere", f"runs:/{registered_model.run_id}/model", registered_model.run_id)
    with pytest.raises(
        UsageError, match="^model must be in this tracking store, and complete, got models:/elsewhere/1"
    ):
        find_model(TrackingClient(), "models:/elsewhere/1")
