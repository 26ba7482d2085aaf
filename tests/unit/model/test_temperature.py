"""A temperature as a part of a network."""

import keras
import numpy as np
import pytest

from pipeline.config.training import ModelConfig
from pipeline.evaluation.calibration import scale_probabilities
from pipeline.model.class_activation import class_activation_maps
from pipeline.model.conv_mixer import build_stock_model
from pipeline.model.ensemble import build_ensemble, ensemble_members
from pipeline.model.temperature import fold_temperature

SHAPE, CLASSES, TEMPERATURE = (8, 8, 3), 4, 1.7


@pytest.fixture(scope="module")
def models():
    """A network and an ensemble of two."""
    random = np.random.default_rng(0)
    config = ModelConfig.build({"filters": 4, "depth": 1, "kernel_size": 3, "patch_size": 2})
    members = [build_stock_model(config, SHAPE, CLASSES) for _ in range(2)]
    for member in members:
        member.set_weights([random.uniform(0.1, 1, weight.shape) for weight in member.get_weights()])
    return {"network": members[0], "ensemble": build_ensemble(members)}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (20, *SHAPE), np.uint8)


@pytest.mark.parametrize("kind", ["network", "ensemble"])
def test_fold_temperature_scales_the_probabilities_of_a_model_that_is_saved_and_loaded(models, images, tmp_path, kind):
    model = models[kind]
    before = model.predict_on_batch(images.astype(np.float32))
    folded = fold_temperature(model, TEMPERATURE)
    folded.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    assert len(ensemble_members(loaded)) == len(ensemble_members(model))
    for one in (folded, loaded):
        after = one.predict_on_batch(images.astype(np.float32))
        np.testing.assert_allclose(after, scale_probabilities(before, TEMPERATURE), atol=1e-5)
        np.testing.assert_array_equal(after.argmax(axis=1), before.argmax(axis=1))
        assert after.dtype == np.float32
    np.testing.assert_array_equal(model.predict_on_batch(images.astype(np.float32)), before)


def test_fold_temperature_of_a_network_keeps_its_layers_and_scales_its_maps(models, images):
    model = models["network"]
    folded = fold_temperature(model, TEMPERATURE)
    assert [layer.name for layer in folded.layers] == [layer.name for layer in model.layers]
    classes = np.zeros(len(images), np.int64)
    before, after = (class_activation_maps(one, images, classes) for one in (model, folded))
    np.testing.assert_allclose(after.maps * TEMPERATURE, before.maps, rtol=1e-4)
