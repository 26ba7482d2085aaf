"""Results of a trained model on the test set."""

import keras
import numpy as np
import pytest

from pipeline.config.training import DataConfig, TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.training.results import evaluate_on_test_set


class DiscardingRun:
    """A run that logs nothing."""

    id = "discarding"

    def log_table(self, *_, **__):
        pass

    log_figure = set_tags = log_table


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(dataset="digits", train_examples=200), seed=0)


@pytest.fixture(scope="module")
def model():
    """Return a model whose output depends on the position of a pixel."""
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense(10, activation="softmax")
    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), dense])


def test_evaluate_on_test_set_with_flip_adds_the_accuracy_of_averaged_probabilities(digits, model):
    plain, both = (
        evaluate_on_test_set(DiscardingRun(), model, TrainingConfig.build({"test_time_flip": flip}), digits)
        for flip in (False, True)
    )
    images, labels = digits.test.take(np.arange(len(digits.test)))
    one, other = (model.predict(each, verbose=0) for each in (images, images[:, :, ::-1]))
    assert both.pop("test_accuracy_flip") == pytest.approx(np.mean((one + other).argmax(axis=1) == labels))
    assert both == plain
    assert not np.array_equal(one.argmax(axis=1), (one + other).argmax(axis=1)), "the case shows nothing"
