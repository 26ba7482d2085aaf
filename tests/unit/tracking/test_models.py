"""Facts about models that are read back from MLflow."""

import os
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.artifacts import download_artifacts

from pipeline.runtime.errors import UsageError
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.models import find_model, load_model
from tests.support.registered import CLASSES, SHAPE

FORMS = ["models:/colours@champion", "models:/colours/1", "models:/colours/latest", "runs:/{run}/model", "models:/{id}"]


@pytest.mark.parametrize("form", FORMS)
def test_every_uri_leads_to_the_same_network(registered_model, form):
    run_id = registered_model.run_id
    own = find_model(TrackingClient(), f"runs:/{run_id}/model").model_id
    loaded = load_model(TrackingClient(), form.format(run=run_id, id=own))
    assert (loaded.classes, loaded.image_shape, loaded.run_id) == (CLASSES, SHAPE, run_id)
    images = np.random.default_rng(0).uniform(0, 255, (4, *SHAPE))
    np.testing.assert_array_equal(
        loaded.model.predict_on_batch(images), registered_model.model.predict_on_batch(images)
    )


@pytest.mark.parametrize("name", ["model", "served"])
@pytest.mark.parametrize("part", [".keras", "MLmodel"])
def test_a_model_whose_files_were_exchanged_is_not_loaded(registered_model, name, part):
    uri = f"runs:/{registered_model.run_id}/{name}"
    folder = Path(find_model(TrackingClient(), uri).artifact_location)
    (file,) = [path for path in folder.rglob("*") if path.name.endswith(part)]
    whole = file.read_bytes()
    file.write_bytes(whole + b" ")
    try:
        with pytest.raises(UsageError, match=rf"files must be those that its run logged: .*{file.name};"):
            load_model(TrackingClient(), uri)
    finally:
        file.write_bytes(whole)
    assert load_model(TrackingClient(), uri).classes == CLASSES


def test_a_model_without_digests_is_not_loaded(registered_model):
    client = mlflow.MlflowClient()
    experiment = client.get_run(registered_model.run_id).info.experiment_id
    model = client.create_logged_model(experiment, name="other")
    client.finalize_logged_model(model.model_id, "READY")
    with pytest.raises(UsageError, match="^model must have the digests of its files"):
        load_model(TrackingClient(), f"models:/{model.model_id}")


def test_a_model_that_is_not_all_there_is_not_loaded(registered_model):
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
def test_a_name_for_nothing_is_refused_in_one_line(registered_model, uri):
    uri = uri.format(run=registered_model.run_id)
    with pytest.raises(UsageError, match="^model must be in this tracking store, ") as refused:
        find_model(TrackingClient(), uri)
    assert uri in str(refused.value) and str(refused.value).isprintable()


def test_neither_form_of_a_model_holds_a_pickle(registered_model):
    for name in ("model", "served"):
        folder = download_artifacts(find_model(TrackingClient(), f"runs:/{registered_model.run_id}/{name}").model_uri)
        names = [file for _, _, files in os.walk(folder) for file in files]
        assert "model.keras" in names and not [each for each in names if each.endswith((".pkl", ".pickle", ".pth"))]
