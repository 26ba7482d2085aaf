"""Networks written as ONNX models, and run by onnxruntime."""

import json

import keras
import numpy as np
import onnx
import pytest

from pipeline.model.conv_mixer import conv_mixer
from pipeline.model.ensemble import build_ensemble
from pipeline.model.temperature import fold_temperature
from pipeline.serving.export.comparison import compare, predict_on_cpu
from pipeline.serving.export.onnx_model import NotExportable, load_onnx, write_onnx

SHAPE = (8, 12, 3)  # height and width differ, so that a mistaken order of axes shows
IMAGES = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), np.uint8)


def build(*, seed=0, kernel_size=3, patch_size=2, activation="gelu", batch_norm_epsilon=1e-3):
    """Return a ConvMixer whose weights, biases and statistics are all random, as after a training."""
    shape = {"filters": 8, "depth": 2, "kernel_size": kernel_size, "patch_size": patch_size}
    model = conv_mixer(SHAPE, 4, **shape, activation=activation, batch_norm_epsilon=batch_norm_epsilon)
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        lowest = 0.5 if weight.path.endswith("variance") else -0.5
        weight.assign(generator.uniform(lowest, 1, weight.shape))
    head = model.layers[-1]
    # small, so that no class is certain
    head.kernel.assign(head.kernel * 0.01)
    return model


def difference(model, file, images=IMAGES):
    write_onnx(model, file, metadata={})
    return compare(predict_on_cpu(model, images), load_onnx(file)(images)).max_difference


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kernel_size": 4, "patch_size": 1},  # an even kernel is padded more at the end
        {"kernel_size": 7, "patch_size": 4},
        {"activation": "relu", "batch_norm_epsilon": 1e-5},
    ],
    ids=str,
)
def test_write_onnx_of_a_conv_mixer_answers_as_keras(tmp_path, settings):
    model = build(**settings)
    assert difference(model, tmp_path / "model.onnx") < 1e-6
    # the comparison can tell them apart: the probabilities differ from image to image
    assert np.ptp(predict_on_cpu(model, IMAGES), axis=0).max() > 1e-4


def test_write_onnx_of_an_ensemble_answers_as_keras(tmp_path):
    ensemble = build_ensemble([build(seed=1), build(seed=2, kernel_size=5), build(seed=3)])
    assert difference(ensemble, tmp_path / "model.onnx") < 1e-6


def test_write_onnx_of_a_calibrated_ensemble_answers_as_keras(tmp_path):
    """A temperature is folded into it by a logarithm, which is none of Keras' layers, and by a softmax layer."""
    ensemble = build_ensemble([build(seed=1), build(seed=2)])
    calibrated = fold_temperature(ensemble, 1.7)
    calibrated.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    for model in (calibrated, loaded):
        assert difference(model, tmp_path / "model.onnx") < 1e-6
    # the comparison can tell them apart: the temperature changes the probabilities
    assert np.ptp(predict_on_cpu(calibrated, IMAGES) - predict_on_cpu(ensemble, IMAGES)) > 1e-3


def test_write_onnx_of_a_sequential_model_with_an_offset_answers_as_keras(tmp_path):
    layers = keras.layers
    scale = layers.Rescaling([0.01, 0.02, 0.03], offset=[-1.0, -2.0, -3.0])
    head = layers.Dense(4, activation="softmax", kernel_initializer=keras.initializers.RandomNormal(seed=1))
    model = keras.Sequential([keras.Input(SHAPE), scale, layers.GlobalAveragePooling2D(), head])
    assert difference(model, tmp_path / "model.onnx") < 1e-6


def test_write_onnx_stores_names_and_metadata(tmp_path):
    write_onnx(build(), tmp_path / "model.onnx", metadata={"classes": ["a", "b", "ä", "d"], "resize": "crop"})
    proto = onnx.load(tmp_path / "model.onnx")
    stored = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(stored["classes"]) == ["a", "b", "ä", "d"] and stored["resize"] == "crop"
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["images", "probabilities"]
    sizes = proto.graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_value or size.dim_param for size in sizes] == ["n", *SHAPE]


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.MaxPooling2D(name="strange"),
        keras.layers.Conv2D(3, 3, strides=2, padding="same", name="strange"),
        keras.layers.Conv2D(3, 3, dilation_rate=2, name="strange"),
        keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="strange"),
        keras.layers.Activation("tanh", name="strange"),
        keras.layers.BatchNormalization(axis=1, name="strange"),
        keras.layers.BatchNormalization(scale=False, name="strange"),
        keras.layers.Softmax(name="strange"),  # of images, whose last axis is another one in the graph
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_write_onnx_of_an_unknown_layer_is_refused(tmp_path, layer):
    pooled = keras.layers.GlobalAveragePooling2D()
    model = keras.Sequential([keras.Input(SHAPE), layer, pooled, keras.layers.Dense(4, activation="softmax")])
    with pytest.raises(NotExportable, match="^the layer strange "):
        write_onnx(model, tmp_path / "model.onnx", metadata={})
    assert not (tmp_path / "model.onnx").exists()


def test_write_onnx_of_an_unknown_operation_is_refused(tmp_path):
    images = keras.Input(SHAPE)
    model = keras.Model(images, keras.ops.exp(keras.layers.GlobalAveragePooling2D()(images)))
    with pytest.raises(NotExportable, match=r"^the layer exp\w* is a Exp$"):
        write_onnx(model, tmp_path / "model.onnx", metadata={})


def test_write_onnx_of_a_layer_used_twice_is_refused(tmp_path):
    images = keras.Input(SHAPE)
    layer = keras.layers.Rescaling(0.5, name="twice")
    head = keras.layers.Dense(4, activation="softmax")(keras.layers.GlobalAveragePooling2D()(layer(layer(images))))
    with pytest.raises(NotExportable, match="^the layer twice is used 2 times"):
        write_onnx(keras.Model(images, head), tmp_path / "model.onnx", metadata={})
