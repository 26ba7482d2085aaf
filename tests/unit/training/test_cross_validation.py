"""Predictions out of fold, means over folds, and the mean of their networks."""

import numpy as np
import pytest

from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.model.conv_mixer import build_model
from pipeline.training.cross_validation import CrossValidation, mean_and_sd

CONFIG = TrainingConfig.build(
    {"dataset": "digits", "train_examples": 50, "folds": 2, "filters": 4, "depth": 1, "kernel_size": 3}
    | {"fast_layers": True, "precision": "float32"}
)


@pytest.fixture(scope="module")
def digits():
    return load_dataset(CONFIG.data, seed=0)


@pytest.fixture(scope="module")
def networks(digits):
    """Two networks with random weights, which disagree."""
    random, models = np.random.default_rng(0), []
    for _ in range(2):
        model = build_model(CONFIG, digits.image_shape, len(digits.classes))
        model.set_weights([random.uniform(0.1, 1, weight.shape) for weight in model.get_weights()])
        models.append(model)
    return models


def test_cross_validation_predicts_each_image_with_the_network_of_its_fold(digits, networks):
    folds = CrossValidation(CONFIG, digits)
    for network in networks:
        folds.add(network, {})
    together = digits.out_of_fold.rows
    for split, own, other in zip(digits.folds, networks, reversed(networks), strict=True):
        images, _ = split.take(slice(None))
        kept = folds.probabilities[np.isin(together, split.rows)]
        np.testing.assert_allclose(kept, own.predict(images, verbose=0), atol=1e-6)
        assert not np.allclose(kept, other.predict(images, verbose=0), atol=1e-3)


def test_cross_validation_model_is_the_mean_of_the_networks_in_stock_layers(digits, networks):
    folds = CrossValidation(CONFIG, digits)
    for network in networks:
        folds.add(network, {})
    images, _ = digits.test.take(slice(20))
    expected = np.mean([network.predict(images, verbose=0) for network in networks], axis=0)
    np.testing.assert_allclose(folds.model().predict(images.astype(np.float32), verbose=0), expected, atol=1e-5)


def test_mean_and_sd_of_one_fold_has_no_deviation():
    assert mean_and_sd([{"a": 1.0}]) == {"a": 1.0}
    assert mean_and_sd([{"a": 1.0}, {"a": 3.0}]) == {"a": 2.0, "a_sd": pytest.approx(2**0.5)}
