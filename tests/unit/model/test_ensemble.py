"""An ensemble as one stock Keras model."""

import keras
import numpy as np
import pytest

from pipeline.config.training import ModelConfig
from pipeline.model.conv_mixer import build_stock_model
from pipeline.model.ensemble import build_ensemble, ensemble_members

SHAPE, CLASSES = (8, 8, 3), 4


@pytest.fixture(scope="module")
def members():
    """Two networks of one configuration and one of another, with weights that disagree."""
    random = np.random.default_rng(0)
    models = []
    for filters, depth in ((4, 1), (4, 1), (6, 2)):
        config = ModelConfig.build({"filters": filters, "depth": depth, "kernel_size": 3, "patch_size": 2})
        model = build_stock_model(config, SHAPE, CLASSES)
        model.set_weights([random.uniform(0.1, 1, weight.shape) for weight in model.get_weights()])
        models.append(model)
    return models


@pytest.fixture
def images():
    return np.random.default_rng(1).uniform(0, 255, (5, *SHAPE)).astype(np.float32)


def mean_of(models, images):
    return np.mean([model.predict_on_batch(images) for model in models], axis=0)


def test_build_ensemble_predicts_the_mean_of_its_members(members, images):
    assert np.ptp([model.predict_on_batch(images) for model in members], axis=0).max() > 0.1
    ensemble = build_ensemble(members)
    np.testing.assert_allclose(ensemble.predict_on_batch(images), mean_of(members, images), atol=1e-6)
    assert ensemble.count_params() == sum(model.count_params() for model in members)


def test_build_ensemble_leaves_its_members_as_they_are_and_copies_their_weights(members, images):
    names, before = [model.name for model in members], mean_of(members, images)
    ensemble = build_ensemble(members)
    ensemble.set_weights([weight * 0 for weight in ensemble.get_weights()])
    assert [model.name for model in members] == names
    np.testing.assert_array_equal(mean_of(members, images), before)


def test_build_ensemble_saved_loads_in_safe_mode_and_predicts_the_same(members, images, tmp_path):
    ensemble = build_ensemble(members)
    ensemble.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    np.testing.assert_array_equal(loaded.predict_on_batch(images), ensemble.predict_on_batch(images))
    assert [member.name for member in ensemble_members(loaded)] == ["member1", "member2", "member3"]
    parts = [loaded, *ensemble_members(loaded)]
    assert all(type(layer).__module__.startswith("keras.") for part in parts for layer in part.layers)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_build_ensemble_under_mixed_precision_computes_in_float32(members, images, tmp_path, policy):
    expected = mean_of(members, images)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        ensemble = build_ensemble(members)
        ensemble.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    finally:
        keras.config.set_dtype_policy(before)
    for model in (ensemble, loaded):
        probabilities = model.predict_on_batch(images)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_build_ensemble_of_models_with_other_shapes_raises(members):
    other = build_stock_model(ModelConfig.build({"filters": 4, "depth": 1, "kernel_size": 3}), SHAPE, CLASSES + 1)
    with pytest.raises(ValueError, match="one input and output shape"):
        build_ensemble([members[0], other])


def test_build_ensemble_of_one_model_raises(members):
    with pytest.raises(ValueError, match="two or more"):
        build_ensemble(members[:1])


def test_ensemble_members_of_a_single_network_are_none(members):
    assert ensemble_members(members[0]) == []
