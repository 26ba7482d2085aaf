"""Weights under timm's names, compared with timm's own network where that is installed."""

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import safetensors.numpy

from pipeline.model import timm_weights
from pipeline.model.conv_mixer import HEAD, conv_mixer
from tests.support.paths import ROOT

FILTERS, PATCH, KERNEL, CLASSES = 4, 2, 3, 5
PUBLISHED = ("convmixer_768_32", "convmixer_1024_20_ks9_p14", "convmixer_1536_20")


def arrays_of(depth=2, channels=3):
    """Return random arrays of a small network under timm's names."""
    random = np.random.default_rng(0)
    shapes = {"stem.0": (FILTERS, channels, PATCH, PATCH), "head": (CLASSES, FILTERS)}
    norms = ["stem.2"]
    for block in range(depth):
        shapes[f"blocks.{block}.0.fn.0"] = (FILTERS, 1, KERNEL, KERNEL)
        shapes[f"blocks.{block}.1"] = (FILTERS, FILTERS, 1, 1)
        norms += [f"blocks.{block}.0.fn.2", f"blocks.{block}.3"]
    arrays = {f"{name}.weight": random.normal(size=shape) for name, shape in shapes.items()}
    arrays |= {f"{name}.bias": random.normal(size=shape[0]) for name, shape in shapes.items()}
    for name in norms:
        arrays |= {f"{name}.{part}": random.uniform(0.5, 2, FILTERS) for part in ("weight", "bias")}
        arrays |= {f"{name}.{part}": random.uniform(0.5, 2, FILTERS) for part in ("running_mean", "running_var")}
        arrays[f"{name}.num_batches_tracked"] = np.array(7)
    return arrays


def network(arrays, image_size):
    """Return this program's network with the arrays as its weights, and its logits instead of probabilities."""
    model = conv_mixer((image_size, image_size, 3), len(arrays["head.bias"]), **timm_weights.architecture(arrays))
    for name, weights in timm_weights.keras_layers(arrays).items():
        model.get_layer(name).set_weights(weights)
    model.get_layer(HEAD).activation = None
    return model


def test_architecture_is_that_of_the_arrays_with_pytorchs_epsilon():
    assert timm_weights.architecture(arrays_of(depth=3)) == {
        "filters": FILTERS,
        "depth": 3,
        "kernel_size": KERNEL,
        "patch_size": PATCH,
        "activation": "gelu",
        "batch_norm_epsilon": 1e-5,
    }


def test_keras_layers_are_all_weights_of_the_network():
    arrays = arrays_of()
    model = network(arrays, 8)
    assert set(timm_weights.keras_layers(arrays)) == {layer.name for layer in model.layers if layer.weights}


def test_patch_embedding_takes_raw_pixels_where_timms_takes_standardized_ones():
    arrays = arrays_of()
    pixels = np.random.default_rng(1).integers(0, 256, (PATCH, PATCH, 3))
    # as published with ImageNet
    standardized = (pixels / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    expected = np.einsum("oixy,xyi->o", arrays["stem.0.weight"], standardized) + arrays["stem.0.bias"]
    kernels, bias = timm_weights.keras_layers(arrays)["patch_embedding"]
    np.testing.assert_allclose(np.einsum("xyio,xyi->o", kernels, pixels / 255) + bias, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("stem.0.weight"), "stem.0.weight is missing"),
        (lambda arrays: arrays.pop("blocks.1.3.running_var"), "blocks.1.3.running_var is missing"),
        (
            lambda arrays: arrays.update(arrays_of(channels=1)),
            "stem.0.weight must be for images of 3 channels, and is for 1",
        ),
    ],
    ids=["no stem", "no variance", "gray"],
)
def test_arrays_of_another_network_raise_value_error_with_the_name(change, message):
    arrays = arrays_of()
    change(arrays)
    with pytest.raises(ValueError, match=f"^{message}$"):
        timm_weights.keras_layers(arrays)


@pytest.mark.skipif(
    find_spec("timm") is None, reason="timm is not installed; see the dependency group timm in pyproject.toml"
)
@pytest.mark.parametrize(
    "name", ["small", *(pytest.param(published, marks=pytest.mark.slow) for published in PUBLISHED)]
)
def test_network_answers_as_timms(tmp_path, name):
    subprocess.run([sys.executable, "-m", "tests.support.timm_reference", name, tmp_path], cwd=ROOT, check=True)
    images, logits = np.load(tmp_path / "images.npy"), np.load(tmp_path / "logits.npy")
    ours = network(safetensors.numpy.load_file(tmp_path / "model.safetensors"), images.shape[1])
    np.testing.assert_allclose(ours(images, training=False), logits, atol=1e-4)
