"""Training: what is chosen, what a seed covers, and when it stops."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.training import DataConfig, TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.model.conv_mixer import build_model, depthwise_kernels
from pipeline.model.initializers import SpatialCovariance
from pipeline.runtime.errors import Diverged, UsageError
from pipeline.training.callbacks import CheckpointSaver, ProgressReporter
from pipeline.training.fit import (
    compile_model,
    evaluation_batches,
    fit,
    steps_per_epoch,
    training_batches,
)
from pipeline.training.schedules import LearningRateSchedule

TINY = TrainingConfig.build(
    {
        "dataset": "digits",
        "train_examples": 200,
        "filters": 8,
        "depth": 1,
        "kernel_size": 3,
        "epochs": 2,
        "batch_size": 50,
        "translation": 1,
        "learning_rate": 0.02,
        "batch_norm_momentum": 0.5,
        "precision": "float32",
        "jit_compile": False,
    }
)


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(dataset="digits", train_examples=200), seed=0)


@pytest.fixture
def fitted(digits):
    """Trains TINY with changes; returns the TrainingResult and what was reported."""

    def run(*, start=None, saved=None, **changes):
        reported = []
        callbacks = [ProgressReporter(lambda *epoch: reported.append(epoch))]
        if saved is not None:
            callbacks.append(CheckpointSaver(saved.append))
        result = fit(TINY.model_copy(update=changes), digits, callbacks, start=start)
        return result, reported

    yield run
    keras.config.set_dtype_policy("float32")


def course(result):
    """The history without what a clock says."""
    return {name: values for name, values in result.history.items() if "second" not in name}


@pytest.mark.parametrize("fast_layers", [False, True])
def test_one_seed_gives_one_history_and_the_same_weights(fitted, fast_layers):
    (one, _), (again, _), (other, _) = (fitted(seed=seed, fast_layers=fast_layers) for seed in (3, 3, 4))
    assert course(one) == course(again) != course(other)
    for weight, same in zip(one.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)


def test_the_weights_returned_are_those_of_the_best_validation_accuracy(fitted, digits):
    result, _ = fitted(epochs=6, learning_rate=1.0)
    accuracies = result.history["val_accuracy"]
    assert accuracies[-1] < max(accuracies), "the case shows nothing if the last epoch is the best"
    assert accuracies[result.best_epoch - 1] == max(accuracies)
    batches = evaluation_batches(TINY, digits, digits.validation)
    assert result.model.evaluate(batches, verbose=0, return_dict=True)["accuracy"] == pytest.approx(max(accuracies))


def test_each_epoch_is_reported_once_counted_from_one_with_the_rate_of_its_last_step(fitted):
    result, reported = fitted(schedule="cosine", warmup_fraction=0.25)
    assert [epoch for epoch, _ in reported] == [1, 2]
    assert set(reported[0][1]) == {
        "loss",
        "accuracy",
        "val_loss",
        "val_accuracy",
        "learning_rate",
        "epoch_seconds",
        "images_per_second",
    }
    rate = LearningRateSchedule("cosine", peak=0.02, steps=8, warmup_fraction=0.25)
    assert result.history["learning_rate"] == pytest.approx([float(rate(3)), float(rate(7))])
    assert result.history["epoch_seconds"][1] > 200 / result.history["images_per_second"][1] > 0


@pytest.mark.parametrize(("jit_compile", "sizes"), [(False, [60, 60, 60, 20]), (True, [60, 60, 60])])
def test_a_step_that_xla_compiles_sees_batches_of_one_size(digits, jit_compile, sizes):
    config = TINY.model_copy(update={"batch_size": 60, "jit_compile": jit_compile})
    steps = steps_per_epoch(config, len(digits.train), devices=1)
    assert [len(images) for images, _ in training_batches(config, digits).take(steps)] == sizes


@pytest.mark.parametrize(("batch_size", "at_once"), [(2, 8), (200, 485)])  # 485: three equal parts
def test_evaluation_takes_more_images_at_once_than_training_but_not_any_number(batch_size, at_once):
    whole = load_dataset(DataConfig(dataset="digits"), seed=0)
    config = TINY.model_copy(update={"batch_size": batch_size})
    images, _ = next(iter(evaluation_batches(config, whole, whole.train)))
    assert len(images) == at_once < len(whole.train)


def test_a_loss_that_overflows_stops_the_run_with_epoch_and_step(fitted):
    with pytest.raises(Diverged, match=r"^loss became (nan|inf) at epoch \d+, step \d+; try a lower learning_rate"):
        fitted(learning_rate=10.0, weight_decay=10.0, epochs=20)  # decay by a factor of -99 a step


def test_early_stopping_waits_its_epochs_and_no_longer(fitted):
    result, reported = fitted(learning_rate=1e-9, epochs=20, early_stopping_epochs=2)
    assert len(reported) < 20
    assert len(reported) == result.best_epoch + 2


@pytest.mark.parametrize("decay_norm_and_bias", [False, True])
def test_weight_decay_reaches_batch_norm_and_biases_only_where_asked(digits, decay_norm_and_bias):
    after = []
    for weight_decay in (0.0, 0.5):
        keras.utils.set_random_seed(0)
        config = TINY.model_copy(update={"weight_decay": weight_decay, "decay_norm_and_bias": decay_norm_and_bias})
        model = build_model(config, digits.image_shape, len(digits.classes))
        compile_model(model, config, LearningRateSchedule("constant", peak=0.1, steps=1, warmup_fraction=0))
        model.fit(training_batches(config, digits).take(1), shuffle=False, verbose=0)
        after.append({weight.path: weight.numpy() for weight in model.trainable_weights})
    plain, decayed = after
    changed = {path for path in plain if not np.allclose(plain[path], decayed[path], atol=1e-6)}
    kernels = {path for path in plain if path.endswith("kernel")}
    gammas = {path for path in plain if path.endswith("gamma")}
    assert kernels <= changed
    assert (gammas <= changed) == decay_norm_and_bias
    assert bool(changed - kernels) == decay_norm_and_bias


def test_clip_norm_bounds_the_gradients_of_all_variables_together(digits):
    config = TINY.model_copy(update={"clip_norm": 0.25})
    model = build_model(config, digits.image_shape, len(digits.classes))
    compile_model(model, config, LearningRateSchedule("constant", peak=0.1, steps=1, warmup_fraction=0))
    pairs = [(tf.fill([4], 3.0), "first"), (tf.fill([4], 4.0), "second")]  # of a gradient and its variable
    (first, _), (second, _) = model.optimizer._all_reduce_sum_gradients(pairs)
    assert np.sqrt(np.sum(np.square(first)) + np.sum(np.square(second))) == pytest.approx(0.25)
    assert np.asarray(second)[0] / np.asarray(first)[0] == pytest.approx(4 / 3)


def test_training_starts_from_the_kernels_drawn(fitted):
    result, _ = fitted(epochs=1, depthwise_init="covariance", learning_rate=1e-9)
    initializer = SpatialCovariance(block=1, depth=1, seed=TINY.seed)
    np.testing.assert_allclose(depthwise_kernels(result.model, 1), initializer((3, 3, 8, 1)), atol=1e-6)


def test_averaging_changes_what_is_validated_and_kept_but_not_how_training_goes(fitted, digits):
    (raw, _), (averaged, _) = fitted(), fitted(ema_momentum=0.8)
    for name in ("loss", "accuracy"):
        assert raw.history[name] == averaged.history[name]
    assert raw.history["val_loss"] != averaged.history["val_loss"]
    kept = averaged.model.evaluate(evaluation_batches(TINY, digits, digits.validation), verbose=0, return_dict=True)
    assert kept["loss"] == pytest.approx(averaged.history["val_loss"][averaged.best_epoch - 1])


def test_adam_epsilon_reaches_the_optimizer(digits):
    model = build_model(TINY, digits.image_shape, len(digits.classes))
    rate = LearningRateSchedule("constant", peak=0.1, steps=1, warmup_fraction=0)
    compile_model(model, TINY.model_copy(update={"adam_epsilon": 0.01}), rate)
    assert model.optimizer.epsilon == 0.01


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_float32_weights(fitted, precision):
    result, _ = fitted(precision=precision, epochs=1)
    assert {weight.dtype.name for weight in map(np.asarray, result.model.get_weights())} == {"float32"}
    assert np.isfinite(result.history["val_loss"][0])
    assert isinstance(result.model.optimizer, keras.optimizers.LossScaleOptimizer) == (precision == "mixed_float16")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"precision": "mixed_float16"},
        {"ema_momentum": 0.8, "optimizer": "muon"},
    ],  # with a loss scale, with averages
    ids=["float32", "float16", "averaged muon"],
)
def test_training_that_goes_on_from_a_state_ends_as_if_it_had_never_been_interrupted(fitted, more):
    settings = {"epochs": 4, "schedule": "one_cycle", "clip_norm": 1.0} | more
    saved = []
    whole, _ = fitted(saved=saved, **settings)
    rest, reported = fitted(start=saved[1], **settings)
    assert [epoch for epoch, _ in reported] == [3, 4]
    assert course(rest) == course(whole)
    assert rest.history["epoch_seconds"][:2] == whole.history["epoch_seconds"][:2]
    assert rest.best_epoch == whole.best_epoch
    for weight, same in zip(whole.model.get_weights(), rest.model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    for variable, same in zip(whole.model.optimizer.variables, rest.model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(variable, same)


def test_the_best_weights_from_before_an_interruption_are_not_forgotten(fitted):
    saved = []
    settings = {"epochs": 6, "learning_rate": 1.0}
    whole, _ = fitted(saved=saved, **settings)
    assert whole.best_epoch < 6, "the case shows nothing if the last epoch is the best"
    rest, _ = fitted(start=saved[whole.best_epoch], **settings)
    assert rest.best_epoch == whole.best_epoch
    for weight, same in zip(whole.model.get_weights(), rest.model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)


def test_early_stopping_goes_on_counting_where_it_was(fitted):
    saved = []
    settings = {"learning_rate": 1e-9, "epochs": 20, "early_stopping_epochs": 3}
    whole, _ = fitted(saved=saved, **settings)
    last = len(whole.history["loss"])
    _, reported = fitted(start=saved[last - 2], **settings)
    assert [epoch for epoch, _ in reported] == [last]
    _, reported = fitted(start=saved[last - 1], **settings)
    assert reported == [], "it had stopped"


def test_a_state_of_another_model_is_refused(fitted):
    saved = []
    fitted(epochs=1, saved=saved)
    with pytest.raises(UsageError, match="^a checkpoint must fit the model"):
        fitted(start=saved[0], filters=4)
