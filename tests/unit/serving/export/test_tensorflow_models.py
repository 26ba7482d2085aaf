"""Networks written as SavedModel and LiteRT models, and run by their own runtimes."""

import json
from zipfile import ZipFile

import numpy as np
import pytest

from pipeline.serving.export.comparison import compare, predict_on_cpu
from pipeline.serving.export.tensorflow_models import load_litert, load_saved_model, write_litert, write_saved_model
from tests.support.registered_model import SHAPE, build_model

IMAGES = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), np.uint8)
METADATA = {"classes": ["red", "green", "two\nlines"], "resize": "crop"}


@pytest.fixture(scope="module")
def model():
    return build_model()


def test_saved_model_answers_as_keras_and_holds_its_classes(model, tmp_path):
    write_saved_model(model, tmp_path / "model", metadata=METADATA)
    got = load_saved_model(tmp_path / "model")(IMAGES)
    assert compare(predict_on_cpu(model, IMAGES), got).max_difference < 1e-6
    assets = tmp_path / "model" / "assets"
    assert json.loads((assets / "model.json").read_text()) == METADATA
    assert (assets / "labels.txt").read_text() == "red\ngreen\ntwo lines\n"


def test_litert_model_answers_as_keras_for_any_number_of_images_and_holds_its_classes(model, tmp_path, capfd):
    file = tmp_path / "model.tflite"
    write_litert(model, file, metadata=METADATA)
    predict = load_litert(file)
    for count in (5, 1, 3):
        expected = predict_on_cpu(model, IMAGES[:count])
        assert compare(expected, predict(IMAGES[:count])).max_difference < 1e-6
    with ZipFile(file) as archive:
        assert json.loads(archive.read("model.json")) == METADATA
        assert archive.read("labels.txt") == b"red\ngreen\ntwo lines\n"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("representative", [IMAGES, None], ids=["full integer", "dynamic range"])
def test_quantized_litert_model_takes_and_returns_floats_and_answers_nearly_as_keras(model, tmp_path, representative):
    file = tmp_path / "model.tflite"
    write_litert(model, file, metadata=METADATA, quantize=True, representative=representative)
    got = load_litert(file)(IMAGES)
    difference = compare(predict_on_cpu(model, IMAGES), got).max_difference
    assert got.dtype == np.float32 and 0 < difference < 0.1
