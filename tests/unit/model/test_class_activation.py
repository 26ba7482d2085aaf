"""Class activation maps of a ConvMixer and of an ensemble."""

import keras
import numpy as np
import pytest

from pipeline.config.training import ModelConfig
from pipeline.model import class_activation
from pipeline.model.class_activation import class_activation_maps
from pipeline.model.conv_mixer import build_stock_model
from pipeline.model.ensemble import build_ensemble, ensemble_members

CLASSES = 5


def build(shape, *, patch_size, seed):
    """Return a network whose weights are random, its biases too."""
    random = np.random.default_rng(seed)
    config = ModelConfig.build({"filters": 6, "depth": 2, "kernel_size": 3, "patch_size": patch_size})
    model = build_stock_model(config, shape, CLASSES)
    model.set_weights([random.uniform(0.1, 0.6, weight.shape) for weight in model.get_weights()])
    return model


def logits(model, images):
    """Return what the last layer computes before the softmax."""
    head = model.layers[-1]
    kernel, bias = head.get_weights()
    pooled = keras.Model(model.input, head.input)(images.astype(np.float32)).numpy()
    return pooled @ kernel + bias


def example(shape, number=7):
    random = np.random.default_rng(3)
    return random.integers(0, 256, (number, *shape), np.uint8), random.integers(0, CLASSES, number)


@pytest.mark.parametrize(("shape", "patch_size"), [((8, 8, 1), 2), ((12, 20, 3), 4), ((6, 9, 1), 3)])
def test_class_activation_maps_mean_plus_bias_is_the_logit(shape, patch_size):
    model = build(shape, patch_size=patch_size, seed=0)
    images, classes = example(shape)
    found = class_activation_maps(model, images, classes)
    assert found.maps.shape == (len(images), *shape[:2])
    expected = logits(model, images)[np.arange(len(images)), classes]
    np.testing.assert_allclose(found.maps.mean(axis=(1, 2)) + found.biases, expected, rtol=1e-5, atol=1e-5)
    patches = found.maps.reshape(len(images), shape[0] // patch_size, patch_size, shape[1] // patch_size, patch_size)
    assert np.ptp(patches, axis=(2, 4)).max() == 0, "all pixels of a patch have its value"
    assert np.ptp(found.maps, axis=(1, 2)).min() > 0.01


def test_class_activation_maps_of_many_images_are_those_of_each(monkeypatch):
    model = build((8, 8, 3), patch_size=2, seed=0)
    images, classes = example((8, 8, 3))
    together = class_activation_maps(model, images, classes).maps
    monkeypatch.setattr(class_activation, "BATCH_SIZE", 2)
    np.testing.assert_allclose(class_activation_maps(model, images, classes).maps, together, rtol=1e-5)


def test_class_activation_maps_of_an_ensemble_explain_the_mean_of_its_logits():
    shape = (8, 8, 1)
    ensemble = build_ensemble([build(shape, patch_size=patch_size, seed=patch_size) for patch_size in (2, 4)])
    images, classes = example(shape)
    found = class_activation_maps(ensemble, images, classes)
    expected = np.mean([logits(member, images) for member in ensemble_members(ensemble)], axis=0)
    np.testing.assert_allclose(
        found.maps.mean(axis=(1, 2)) + found.biases, expected[np.arange(len(images)), classes], rtol=1e-5, atol=1e-5
    )


def test_class_activation_maps_of_another_architecture_raise():
    layers = keras.layers
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(CLASSES, activation="softmax")])
    with pytest.raises(ValueError, match="must end in GlobalAveragePooling2D and Dense, got Flatten and Dense"):
        class_activation_maps(model, *example((4, 4, 1)))
