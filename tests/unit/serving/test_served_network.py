"""The network of a served model, by ONNX Runtime and by Keras."""

import logging
import sys

import keras
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from pipeline.model.conv_mixer import conv_mixer
from pipeline.serving.export.onnx_model import write_onnx
from pipeline.serving.served_network import LOGGER, available_cores, load_network

SHAPE = (16, 12, 3)
IMAGES = np.random.default_rng(0).uniform(0, 255, (33, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return conv_mixer(SHAPE, 5, filters=32, depth=2, kernel_size=5, patch_size=2)


@pytest.fixture(scope="module")
def artifacts(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    model.save(folder / "model.keras")
    write_onnx(model, folder / "model.onnx", metadata={})
    return {"model": str(folder / "model.keras"), "onnx": str(folder / "model.onnx")}


@pytest.fixture
def logged(caplog):
    """What is logged, once or twice; MLflow's logger passes nothing on where MLflow has set it up."""
    LOGGER.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, LOGGER.name)
    yield caplog
    LOGGER.removeHandler(caplog.handler)


def test_load_network_with_onnx_answers_each_image_to_the_bit_whatever_its_batch(artifacts, model, logged):
    network = load_network(artifacts)
    assert (network.shape, network.runners) == (SHAPE, available_cores())
    alone = np.concatenate([network.predict(image[None]) for image in IMAGES])
    np.testing.assert_allclose(alone, model.predict_on_batch(IMAGES), atol=1e-6)
    for size in (2, 3, 8, 32, 33):
        batches = [network.predict(IMAGES[start : start + size]) for start in range(0, len(IMAGES), size)]
        np.testing.assert_array_equal(np.concatenate(batches), alone)
    assert logged.messages[0].startswith("The network runs on ONNX Runtime") and "proven equal" in logged.messages[0]


def test_load_network_with_keras_when_told_answers_the_same(artifacts, model, monkeypatch, logged, converted):
    monkeypatch.setenv("CONVMIXER_SERVING_RUNTIME", "keras")
    network = load_network(artifacts)
    assert network.shape == SHAPE
    for size in (1, 8, 33):
        np.testing.assert_allclose(network.predict(IMAGES[:size]), model.predict_on_batch(IMAGES)[:size], atol=1e-6)
    assert logged.messages[0] == f"The network runs on Keras {keras.__version__} (CONVMIXER_SERVING_RUNTIME=keras)"
    assert not converted


def test_load_network_without_onnx_or_its_runtime_uses_keras_and_says_why(artifacts, monkeypatch, logged):
    load_network({"model": artifacts["model"]})
    assert logged.messages[-1].startswith("The network runs on Keras") and "saved without ONNX" in logged.messages[-1]
    # how Python marks a module that cannot be imported
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    load_network(artifacts)
    assert (
        logged.messages[-1].startswith("The network runs on Keras")
        and "onnxruntime is not installed" in logged.messages[-1]
    )


def test_load_network_refuses_a_runtime_that_cannot_be_had(artifacts, monkeypatch):
    monkeypatch.setenv("CONVMIXER_SERVING_RUNTIME", "onnx")
    with pytest.raises(MlflowException, match="needs an ONNX model and onnxruntime: the model was saved without ONNX"):
        load_network({"model": artifacts["model"]})
    monkeypatch.setenv("CONVMIXER_SERVING_RUNTIME", "torch")
    with pytest.raises(MlflowException, match="CONVMIXER_SERVING_RUNTIME must be auto, onnx, keras, got torch"):
        load_network(artifacts)
