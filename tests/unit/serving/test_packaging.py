"""Models as they are written into folders for MLflow."""

import ast
import os
import sys
from importlib.metadata import requires
from pathlib import Path

import keras
import mlflow
import mlflow.keras
import mlflow.tensorflow
import numpy as np
import onnxruntime
import pytest
from mlflow.artifacts import download_artifacts
from mlflow.models import Model

import pipeline.serving.export
from pipeline.serving.export.onnx_model import load_onnx
from pipeline.serving.packaging import COMPARED_IMAGES, requirements, save_keras, save_pyfunc
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.models import find_model
from tests.support.registered_model import CLASSES, NAME, RESIZE, SHAPE, build_model


def folder_of(registered_model, name):
    return Path(find_model(TrackingClient(), f"runs:/{registered_model.run_id}/{name}").artifact_location)


def test_save_keras_writes_classes_signature_and_a_model_that_predicts_the_same(registered_model, tmp_path):
    images = np.random.default_rng(0).uniform(0, 255, (4, *SHAPE)).astype(np.float32)
    save_keras(tmp_path / "model", registered_model.model, example=images[:1], classes=CLASSES, resize=RESIZE)
    about = Model.load(str(tmp_path / "model" / "MLmodel"))
    assert about.metadata == {"classes": list(CLASSES), "resize": RESIZE, "image_size": list(SHAPE[:2])}
    assert about.signature.inputs.inputs[0].shape == (-1, *SHAPE)
    (archive,) = (tmp_path / "model").rglob("*.keras")
    loaded = keras.saving.load_model(archive, compile=False, safe_mode=True)
    np.testing.assert_array_equal(loaded.predict_on_batch(images), registered_model.model.predict_on_batch(images))


@pytest.mark.parametrize("load", [mlflow.keras.load_model, mlflow.tensorflow.load_model])
@pytest.mark.parametrize("name", ["model", "served"])
def test_both_forms_of_a_model_load_as_a_keras_model(registered_model, load, name):
    images = np.random.default_rng(0).uniform(0, 255, (4, *SHAPE)).astype(np.float32)
    loaded = load(find_model(TrackingClient(), f"runs:/{registered_model.run_id}/{name}").model_uri)
    assert isinstance(loaded, keras.Model)
    np.testing.assert_array_equal(loaded.predict_on_batch(images), registered_model.model.predict_on_batch(images))


def test_models_load_by_the_addresses_that_people_type(registered_model):
    """Of a run and of the registry."""
    for uri in (f"runs:/{registered_model.run_id}/model", f"models:/{NAME}@champion"):
        assert mlflow.keras.load_model(uri).input_shape == (None, *SHAPE)


def test_logged_model_loaded_by_pyfunc_returns_probabilities(registered_model):
    images = np.random.default_rng(0).uniform(0, 255, (4, *SHAPE)).astype(np.float32)
    answers = mlflow.pyfunc.load_model(f"runs:/{registered_model.run_id}/model").predict(images)
    np.testing.assert_allclose(answers, registered_model.model.predict_on_batch(images), rtol=1e-5)


def test_registered_model_loaded_by_pyfunc_returns_names_of_classes(registered_model):
    image = np.full(SHAPE, 100.0).tolist()
    (answer,) = mlflow.pyfunc.load_model(f"models:/{NAME}@champion").predict({"image": [image]})
    assert answer["class"] in CLASSES and set(answer["probabilities"]) == set(CLASSES)


def test_requirements_pin_the_installed_versions():
    assert f"mlflow=={mlflow.__version__}" in requirements()
    assert f"numpy=={np.__version__}" in requirements("pandas")
    assert [line.split("==")[0] for line in requirements("pandas")][-1] == "pandas"


@pytest.mark.parametrize("name", ["model", "served"])
def test_neither_form_of_a_model_holds_a_pickle(registered_model, name):
    uri = find_model(TrackingClient(), f"runs:/{registered_model.run_id}/{name}").model_uri
    names = [file for _, _, files in os.walk(download_artifacts(uri)) for file in files]
    assert "model.keras" in names and not [file for file in names if file.endswith((".pkl", ".pickle", ".pth"))]


def test_save_pyfunc_code_imports_nothing_but_its_requirements(registered_model):
    """Where a model is served, nothing else is installed: nothing of this project."""
    folder = folder_of(registered_model, "served")
    required = {line.split("==")[0] for line in (folder / "requirements.txt").read_text().splitlines()}
    imported = set()
    for file in folder.rglob("*.py"):
        tree = ast.parse(file.read_text())
        imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    foreign = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    # MLflow's server is made of it
    assert any(line.startswith("fastapi") for line in requires("mlflow"))
    # imported where it is installed
    optional = {"prometheus-client"}
    assert {{"PIL": "pillow"}.get(name, name) for name in foreign - {"fastapi"}} | optional == required


def save_and_read(folder, images):
    """Save the model of three colours as it is served, and return its folder and what is known of it."""
    save_pyfunc(folder, build_model(), images=images, classes=CLASSES, resize=RESIZE)
    return folder / "artifacts" / "model.onnx", Model.load(str(folder / "MLmodel"))


IMAGES = np.random.default_rng(0).integers(0, 256, (COMPARED_IMAGES + 3, *SHAPE), np.uint8)


def test_save_pyfunc_adds_an_onnx_model_that_is_proven_equal(tmp_path):
    file, about = save_and_read(tmp_path / "model", IMAGES)
    proof = about.metadata["onnx"]
    assert proof["proven"] and proof["images"] == COMPARED_IMAGES and proof["max_difference"] < 1e-6
    assert about.flavors["python_function"]["artifacts"]["onnx"]["path"] == "artifacts/model.onnx"
    np.testing.assert_allclose(load_onnx(file)(IMAGES), build_model().predict_on_batch(IMAGES), atol=1e-6)
    requirements = (tmp_path / "model" / "requirements.txt").read_text()
    assert f"onnxruntime=={onnxruntime.__version__}" in requirements and "\nonnx==" not in requirements


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_save_pyfunc_without_the_extra_saves_keras_alone(tmp_path, monkeypatch, missing):
    monkeypatch.delitem(sys.modules, "pipeline.serving.export.onnx_model", raising=False)
    # how Python marks a module that cannot be imported
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delattr(pipeline.serving.export, "onnx_model", raising=False)
    file, about = save_and_read(tmp_path / "model", IMAGES)
    assert about.metadata["onnx"] == {"proven": False, "reason": "onnx and onnxruntime are not installed"}
    assert not file.exists() and (file.parent / "model.keras").exists()
    assert "onnx" not in (tmp_path / "model" / "requirements.txt").read_text()


def test_save_pyfunc_of_a_network_that_differs_saves_keras_alone(tmp_path, monkeypatch):
    def shifted(file):
        return lambda images: load_onnx(file)(images) + np.float32(2e-4)

    monkeypatch.setattr("pipeline.serving.export.onnx_model.load_onnx", shifted)
    file, about = save_and_read(tmp_path / "model", IMAGES)
    assert not about.metadata["onnx"]["proven"]
    assert about.metadata["onnx"]["max_difference"] == pytest.approx(2e-4, rel=0.01)
    assert not file.exists()


def test_save_pyfunc_of_an_unknown_layer_saves_keras_alone(tmp_path):
    layers = keras.layers
    parts = [layers.MaxPooling2D(name="strange"), layers.GlobalAveragePooling2D(), layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input(SHAPE), *parts])
    save_pyfunc(tmp_path / "model", model, images=IMAGES, classes=CLASSES, resize=RESIZE)
    proof = Model.load(str(tmp_path / "model" / "MLmodel")).metadata["onnx"]
    assert proof == {"proven": False, "reason": "the layer strange is a MaxPooling2D"}
