"""Results of a trained model on the test set."""

import keras
import numpy as np
import pytest

from pipeline.config.training import DataConfig, TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.model.conv_mixer import build_model
from pipeline.tracking.tags import Tag
from pipeline.tracking.test_set_access import access_count
from pipeline.training.results import evaluate_on_test_set, serving_model


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


class TaggedRun(DiscardingRun):
    """A run that remembers its tags."""

    def __init__(self):
        self.tags = {}

    def set_tags(self, tags):
        self.tags |= tags


def test_evaluate_on_test_set_counts_the_access_before_it_predicts(digits):
    run = TaggedRun()

    class Killed:
        def predict(self, *_, **__):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_on_test_set(run, Killed(), TrainingConfig(), digits)
    assert access_count(run.tags, run_id=run.id, tested=False) == 1
    assert run.tags[Tag.TEST_SET_ACCESSES] == "1"


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_serving_model_is_float32_after_a_training_in_another_precision(digits, precision):
    config = TrainingConfig.build({"filters": 4, "depth": 1, "kernel_size": 3, "fast_layers": True})
    keras.config.set_dtype_policy(precision)
    try:
        trained = build_model(config, digits.image_shape, len(digits.classes))
        served = serving_model(trained, config, digits)
        assert keras.config.dtype_policy().name == precision
    finally:
        keras.config.set_dtype_policy("float32")
    assert {(layer.compute_dtype, layer.variable_dtype) for layer in served.layers} == {("float32", "float32")}
    for weight, same in zip(trained.get_weights(), served.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
