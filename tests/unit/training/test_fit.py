"""The training loop: selected weights, seeds, early stopping and resuming."""

import functools
import itertools
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.effective import effective
from pipeline.config.training import DataConfig, TrainingConfig
from pipeline.data import batches
from pipeline.data.dataset import load_dataset
from pipeline.evaluation.metrics import ClassCounts, balanced_accuracy, confusion_matrix
from pipeline.model.conv_mixer import HEAD, build_model, depthwise_kernels
from pipeline.model.initializers import SpatialCovariance
from pipeline.runtime.errors import Diverged, UsageError
from pipeline.training.callbacks import CheckpointSaver, ProgressReporter
from pipeline.training.fit import (
    TIMINGS,
    TrainingStage,
    compile_model,
    evaluation_batches,
    fit,
    images_per_epoch,
    input_shape,
    last_learning_rate,
    learning_rate_share,
    make_training_batches,
    many_left_out,
    steps_per_epoch,
    training_stages,
)
from pipeline.training.initial_weights import InitialWeights
from pipeline.training.schedules import LearningRateSchedule
from pipeline.training.teacher import Teacher
from pipeline.training.train_function import make_train_function

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


# Of trainings whose best epoch is rarely the last; see the fixture `overshooting`
OVERSHOOTING = {"epochs": 6, "learning_rate": 1.0}
# Of a training that stops early, with the weights that it began with
NOT_LEARNING = {"learning_rate": 1e-9, "epochs": 20, "early_stopping_epochs": 3, "depthwise_init": "covariance"}
# Of trainings that are resumed
FOUR_EPOCHS = {"epochs": 4, "schedule": "one_cycle", "clip_norm": 1.0}
FLOAT16 = FOUR_EPOCHS | {"precision": "mixed_float16"}
HEAD_FIRST = FOUR_EPOCHS | {"depth": 2, "head_epochs": 2, "freeze_blocks": 1, "layer_decay": 0.5}
HEAD_FIRST |= {"ema_momentum": 0.5, "monitor": "val_loss"}
BFLOAT16 = {"fast_layers": True, "precision": "mixed_bfloat16", "class_weights": "balanced", "clip_norm": 1.0}


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(dataset="digits", train_examples=200), seed=0)


@pytest.fixture(scope="module")
def unequal_digits():
    """Return digits of which 5 to 9 have a tenth of the training images of 0 to 4."""
    whole = load_dataset(DataConfig(dataset="digits"), seed=0)

    def thinned(split, common, rare):
        labels = split.labels[split.rows]
        kept = [split.rows[labels == digit][: common if digit < 5 else rare] for digit in range(10)]
        return replace(split, rows=np.sort(np.concatenate(kept)))

    return replace(whole, train=thinned(whole.train, 60, 6), validation=thinned(whole.validation, 12, 4))


@pytest.fixture
def train(digits):
    """Return a function that trains TINY with changes and returns the TrainingResult and the reported epochs."""

    def run(*, start=None, states=None, dataset=digits, **changes):
        reported = []
        callbacks = [ProgressReporter(lambda *epoch: reported.append(epoch))]
        if states is not None:
            callbacks.append(CheckpointSaver(states.append))
        result = fit(TINY.model_copy(update=changes), dataset, callbacks, start=start)
        return result, reported

    yield run
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("weights_from", "initial_weights must be given with weights_from=models:/m-1"),
        ("teacher", "the teacher must be given with teacher=models:/m-1"),
    ],
)
def test_fit_is_refused_without_a_model_that_the_settings_name(digits, setting, message):
    with pytest.raises(UsageError, match=message):
        fit(TINY.model_copy(update={setting: "models:/m-1"}), digits)


def test_fit_is_refused_with_a_model_of_another_network_or_of_other_classes(digits):
    other = build_model(TINY.model_copy(update={"filters": TINY.filters + 1}), digits.image_shape, 3)
    layers = {layer.name: layer.get_weights() for layer in other.layers if layer.weights}
    network = InitialWeights(
        "models:/m-1", layers, {"depth": TINY.depth}, classes=("a", "b", "c"), image_shape=digits.image_shape
    )
    with pytest.raises(UsageError, match="weights_from must fit the network: "):
        fit(TINY.model_copy(update={"weights_from": "models:/m-1"}), digits, initial_weights=network)
    with pytest.raises(UsageError, match="teacher must tell the data's classes apart"):
        fit(TINY.model_copy(update={"teacher": "models:/m-1"}), digits, teacher=Teacher(network))
    with pytest.raises(UsageError, match="teacher must be one that the settings name, got models:/m-1"):
        fit(TINY, digits, teacher=Teacher(network))


@pytest.fixture(scope="module")
def train_once(digits):
    """Return a function like that of `train`, for settings of several tests; it returns the states too.

    It trains once with the same settings, as tracing a training takes seconds.
    """

    @functools.cache
    def run(**changes):
        reported, states = [], []
        callbacks = [ProgressReporter(lambda *epoch: reported.append(epoch)), CheckpointSaver(states.append)]
        result = fit(TINY.model_copy(update=changes), digits, callbacks)
        keras.config.set_dtype_policy("float32")
        return result, reported, states

    return run


@pytest.fixture(scope="module")
def overshooting(train_once):
    """Return the settings of a training that ends worse than it was. With which seed depends on the processor."""
    for seed in range(10):
        result, _, _ = train_once(**OVERSHOOTING, seed=seed)
        if result.history["val_accuracy"][-1] < max(result.history["val_accuracy"]):
            return OVERSHOOTING | {"seed": seed}
    return pytest.fail("every training ended at its best")


def history_without_timings(result):
    """Return the history without what a clock measures."""
    return {name: values for name, values in result.history.items() if "second" not in name}


def assert_equal_weights(one, other):
    for weight, same in zip(one.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)


IDLE = {"randaugment_magnitude": 3, "crop_ratio": 2.0, "mix_probability": 0.5}
IDLE |= {"warmup_fraction": 0.3, "early_stopping_epochs": 100, "clean_epochs": 1}


@pytest.mark.parametrize(
    ("settings", "idle"), [({}, IDLE), ({"fast_layers": True}, {})], ids=["other settings without effect", "fast"]
)
def test_fit_with_the_same_seed_and_effective_settings_repeats_history_and_weights(train, train_once, settings, idle):
    (one, _, _), (again, _) = train_once(**settings), train(**settings, **idle)
    assert effective(TINY.model_copy(update=idle)) == effective(TINY)
    assert history_without_timings(one) == history_without_timings(again)
    assert_equal_weights(one, again)


def test_fit_with_another_seed_has_another_history(train, train_once):
    (one, _, _), (other, _) = train_once(), train(seed=4)
    assert history_without_timings(one) != history_without_timings(other)


def test_fit_returns_the_weights_of_the_best_validation_accuracy(train_once, overshooting, digits):
    result, _, _ = train_once(**overshooting)
    accuracies = result.history["val_accuracy"]
    assert accuracies[result.best_epoch - 1] == max(accuracies)
    batches = evaluation_batches(TINY, digits, digits.validation)
    assert result.model.evaluate(batches, verbose=0, return_dict=True)["accuracy"] == pytest.approx(max(accuracies))


def test_fit_on_unequal_classes_returns_the_weights_of_the_best_monitored_metric(train, unequal_digits):
    settings = {"epochs": 8, "learning_rate": 0.5, "translation": 0, "monitor": "val_balanced_accuracy"}
    for seed in range(10):
        result, _ = train(dataset=unequal_digits, seed=seed, **settings)
        balanced, validation = result.history["val_balanced_accuracy"], unequal_digits.validation
        if np.argmax(result.history["val_accuracy"]) != np.argmax(balanced):
            break
    else:
        pytest.fail("the best epoch was the same by both metrics in every training")
    assert result.best_epoch == np.argmax(balanced) + 1
    probabilities = result.model.predict(evaluation_batches(TINY, unequal_digits, validation), verbose=0)
    counts = confusion_matrix(probabilities, validation.labels[validation.rows])
    assert balanced_accuracy(ClassCounts.of_confusion(counts)) == max(balanced)
    recalls = [result.history[f"val_recall/{digit}"][result.best_epoch - 1] for digit in range(10)]
    assert np.mean(recalls) == pytest.approx(max(balanced))


def test_fit_reports_each_epoch_once_with_the_learning_rate_of_its_last_step(train_once):
    result, reported, _ = train_once(**FOUR_EPOCHS)
    assert [epoch for epoch, _ in reported] == [1, 2, 3, 4]
    assert {name for name in reported[0][1] if "second" in name} == set(TIMINGS) - {"seconds"}
    assert set(reported[0][1]) == {
        "loss",
        "accuracy",
        "val_loss",
        "val_accuracy",
        "val_balanced_accuracy",
        "val_macro_f1",
        *(f"val_recall/{digit}" for digit in range(10)),
        "learning_rate",
        "epoch_seconds",
        "images_per_second",
    }
    rate = LearningRateSchedule("one_cycle", peak=0.02, steps=16, warmup_fraction=TINY.warmup_fraction)
    assert result.history["learning_rate"] == pytest.approx([float(rate(step)) for step in (3, 7, 11, 15)])
    assert result.history["epoch_seconds"][1] > 200 / result.history["images_per_second"][1] > 0


@pytest.mark.parametrize(("jit_compile", "sizes"), [(False, [60, 60, 60, 20]), (True, [60, 60, 60])])
def test_training_batches_with_xla_have_one_size(digits, jit_compile, sizes):
    config = TINY.model_copy(update={"batch_size": 60, "jit_compile": jit_compile})
    steps = steps_per_epoch(config, len(digits.train), devices=1)
    assert [len(images) for images, _ in make_training_batches(config, digits).on_host().take(steps)] == sizes


@pytest.mark.parametrize(
    ("settings", "weights", "balanced", "alternating"),
    [
        ({}, None, False, False),
        ({"sampling": "balanced", "flip": "alternating", "label_smoothing": 0.25}, None, True, True),
        ({"class_weights": "balanced", "flip": "random"}, "balanced", False, False),
    ],
)
def test_training_batches_are_made_as_the_settings_say(digits, monkeypatch, settings, weights, balanced, alternating):
    made, augmentations = [], []
    monkeypatch.setattr(batches, "TrainingBatches", lambda *given, **named: made.append((given, named)))
    monkeypatch.setattr(
        "pipeline.training.fit.build_augmentation",
        lambda *given, **named: augmentations.append((given, named)) or "augment",
    )
    config = TINY.model_copy(update={"seed": 5, "epochs": 7, "batch_size": 60} | settings)
    make_training_batches(config, digits, initial_epoch=3, size=(4, 6), clean=True, for_xla=True)
    (((split,), named),) = made
    assert split is digits.train
    labels, given = named.pop("balanced_labels"), named.pop("class_weights")
    own = digits.train.labels[digits.train.rows]
    if balanced:
        np.testing.assert_array_equal(labels, own)
    else:
        assert labels is None
    if weights:
        np.testing.assert_array_equal(given, batches.class_weights(weights, own, 10))
    else:
        assert given is None
    assert named == {
        "image_shape": (8, 8, 1),
        "classes": 10,
        "batch_size": 60,
        "epochs": 7,
        "seed": 5,
        "augment": "augment",
        "label_smoothing": config.label_smoothing,
        "initial_epoch": 3,
        "alternating_flip": alternating,
        "size": (4, 6),
        "batch_multiple": 1,
    }
    assert augmentations == [((config.augmentation,), {"clean": True, "for_xla": True})]
    make_training_batches(config, digits)
    assert augmentations[1][1] == {"clean": False, "for_xla": False}
    assert (made[1][1]["initial_epoch"], made[1][1]["size"]) == (0, None)


def test_training_stages_train_the_head_first_and_then_all_layers_that_are_not_frozen():
    def stages(**changes):
        return training_stages(TINY.model_copy(update={"depth": 3, "epochs": 7} | changes))

    assert stages() == [TrainingStage(0, 7, 0)]
    assert stages(freeze_blocks=2) == [TrainingStage(0, 7, 3)]
    assert stages(head_epochs=2) == [TrainingStage(0, 2, 4), TrainingStage(2, 7, 0)]
    assert stages(head_epochs=7, freeze_blocks=1) == [TrainingStage(0, 7, 4)]


def test_last_learning_rate_is_that_of_the_last_step_in_the_schedule_of_its_stage():
    settings = {"epochs": 5, "head_epochs": 2, "schedule": "one_cycle", "learning_rate": 0.5, "warmup_fraction": 0.25}
    config = TINY.model_copy(update=settings)
    expected = []
    for epochs in (2, 3):
        rate = LearningRateSchedule("one_cycle", peak=0.5, steps=4 * epochs, warmup_fraction=0.25)
        expected += [float(rate(4 * epoch + 3)) for epoch in range(epochs)]
    assert [last_learning_rate(config, 4, epoch) for epoch in range(5)] == expected


def test_input_shape_is_open_where_the_images_grow(digits):
    oblong = replace(digits, image_shape=(8, 6, 3))
    assert input_shape(TINY, oblong) == (8, 6, 3)
    assert input_shape(TINY.model_copy(update={"progressive_resize": "4:0.5"}), oblong) == (None, None, 3)


def test_steps_per_epoch_are_those_of_batches_that_devices_share_equally():
    config = TINY.model_copy(update={"batch_size": 8})
    assert [steps_per_epoch(config, 17, devices=devices) for devices in (1, 2)] == [3, 2]
    with_xla = config.model_copy(update={"jit_compile": True})
    assert [steps_per_epoch(with_xla, images, devices=1) for images in (17, 23)] == [2, 2]


def test_images_per_second_are_those_that_were_trained_on(train, monkeypatch):
    # a clock that goes on by a second whenever it is read: when an epoch begins, after its only step, and at its end
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr("pipeline.training.callbacks.time", clock)
    with_xla, _ = train(batch_size=150, jit_compile=True, epochs=1)
    assert with_xla.history["images_per_second"] == [150]


def test_many_left_out_warns_with_a_batch_size_that_leaves_out_fewer():
    def warning(images, batch_size, *, jit_compile=True, devices=1):
        config = TINY.model_copy(update={"batch_size": batch_size, "jit_compile": jit_compile})
        return many_left_out(config, images, devices=devices)

    assert warning(300, 256) == (
        "each epoch leaves out 44 of 300 training images, drawn anew each time, as XLA takes batches of one size: 15% "
        "with batch_size=256; try 150, which leaves out none"
    )
    assert warning(200, 94).endswith("6% with batch_size=94; try 66, which leaves out 2")
    assert warning(200, 95) is None, "5 % are few"
    assert warning(50_000, 512) is None
    assert warning(300, 256, jit_compile=False) is None
    assert warning(15, 8, jit_compile=False, devices=8) is None, "no size leaves out fewer"


def test_images_left_out_are_others_in_each_epoch(digits):
    config = TINY.model_copy(update={"batch_size": 150, "jit_compile": True})
    batches = make_training_batches(config, digits)
    first, second = (set(plan.positions.numpy().tolist()) for plan in batches.plans())
    assert len(first) == len(second) == images_per_epoch(config, len(digits.train), devices=1) == 150
    assert first != second


@pytest.mark.parametrize(("batch_size", "at_once"), [(2, 8), (200, 485)])  # 485: three equal parts
def test_evaluation_batches_are_larger_than_training_batches_up_to_a_limit(batch_size, at_once):
    whole = load_dataset(DataConfig(dataset="digits"), seed=0)
    config = TINY.model_copy(update={"batch_size": batch_size})
    images, _ = next(iter(evaluation_batches(config, whole, whole.train)))
    assert len(images) == at_once < len(whole.train)


def test_fit_with_an_overflowing_loss_raises_diverged_with_epoch_and_step(train):
    with pytest.raises(Diverged, match=r"^loss became (nan|inf) at epoch \d+, step \d+; try a lower learning_rate"):
        train(learning_rate=10.0, weight_decay=10.0, epochs=20)  # decay by a factor of -99 a step


def test_early_stopping_stops_after_its_patience(train_once):
    result, reported, _ = train_once(**NOT_LEARNING)
    assert len(reported) < 20
    assert len(reported) == result.best_epoch + 3


def weights_after_a_step(digits, **changes):
    """Return the trained weights of a new model by path, before and after a step of its compiled optimizer."""
    config = TINY.model_copy(update=changes)
    keras.utils.set_random_seed(config.seed)
    model = build_model(config, digits.image_shape, len(digits.classes))
    compile_model(model, config, LearningRateSchedule("constant", peak=0.1, steps=1, warmup_fraction=0))
    random = np.random.default_rng(0)
    before = {weight.path: np.array(weight) for weight in model.trainable_weights}
    gradients = [random.standard_normal(weight.shape).astype(np.float32) for weight in model.trainable_weights]
    model.optimizer.apply(gradients)
    return before, {weight.path: np.array(weight) for weight in model.trainable_weights}


@pytest.mark.parametrize("decay_norm_and_bias", [False, True])
def test_weight_decay_of_batch_norm_and_biases_follows_the_setting(digits, decay_norm_and_bias):
    (_, plain), (_, decayed) = (
        weights_after_a_step(digits, weight_decay=weight_decay, decay_norm_and_bias=decay_norm_and_bias)
        for weight_decay in (0.0, 0.5)
    )
    changed = {path for path in plain if not np.allclose(plain[path], decayed[path], atol=1e-6)}
    kernels = {path for path in plain if path.endswith("kernel")}
    gammas = {path for path in plain if path.endswith("gamma")}
    assert kernels <= changed
    assert (gammas <= changed) == decay_norm_and_bias
    assert bool(changed - kernels) == decay_norm_and_bias


def test_clip_norm_limits_the_gradients_of_all_variables_together(digits):
    config = TINY.model_copy(update={"clip_norm": 0.25})
    model = build_model(config, digits.image_shape, len(digits.classes))
    compile_model(model, config, LearningRateSchedule("constant", peak=0.1, steps=1, warmup_fraction=0))
    pairs = [(tf.fill([4], 3.0), "first"), (tf.fill([4], 4.0), "second")]  # of a gradient and its variable
    (first, _), (second, _) = model.optimizer._all_reduce_sum_gradients(pairs)
    assert np.sqrt(np.sum(np.square(first)) + np.sum(np.square(second))) == pytest.approx(0.25)
    assert np.asarray(second)[0] / np.asarray(first)[0] == pytest.approx(4 / 3)


def test_fit_starts_from_the_kernels_of_the_initializer(train_once):
    result, _, _ = train_once(**NOT_LEARNING)
    initializer = SpatialCovariance(block=1, depth=1, seed=TINY.seed)
    np.testing.assert_allclose(depthwise_kernels(result.model, 1), initializer((3, 3, 8, 1)), atol=1e-6)


def test_fit_with_ema_changes_validation_and_weights_but_not_training(train_once, digits):
    (raw, _, _), (averaged, _, _) = train_once(), train_once(ema_momentum=0.8)
    for name in ("loss", "accuracy"):
        assert raw.history[name] == averaged.history[name]
    assert raw.history["val_loss"] != averaged.history["val_loss"]
    kept = averaged.model.evaluate(evaluation_batches(TINY, digits, digits.validation), verbose=0, return_dict=True)
    assert kept["loss"] == pytest.approx(averaged.history["val_loss"][averaged.best_epoch - 1])


def test_validation_images_have_no_part_in_averaged_weights(train, train_once, digits):
    validation = digits.validation
    white = replace(digits, validation=replace(validation, images=np.full_like(validation.images, 255)))
    (one, _, [first, _]), states = train_once(ema_momentum=0.8), []
    other, _ = train(dataset=white, ema_momentum=0.8, states=states)
    assert one.history["val_loss"][0] != other.history["val_loss"][0]
    # averaged; the first epoch is the best one so far, whatever the images
    for weight, same in zip(first.best_weights, states[0].best_weights, strict=True):
        np.testing.assert_array_equal(weight, same)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"adam_epsilon": 0.01}, {"epsilon": 0.01}),
        ({"optimizer": "muon", "muon_momentum": 0.5}, {"momentum": 0.5}),
        ({"gradient_accumulation": 3}, {"gradient_accumulation_steps": 3}),
        ({"ema_momentum": 0.7}, {"use_ema": True, "ema_momentum": 0.7}),
        ({"clip_norm": 2.0, "weight_decay": 0.3}, {"global_clipnorm": 2.0, "weight_decay": 0.3}),
    ],
)
def test_compile_model_builds_the_optimizer_of_the_settings(digits, settings, expected):
    model = build_model(TINY, digits.image_shape, len(digits.classes))
    rate = LearningRateSchedule("constant", peak=0.1, steps=1, warmup_fraction=0)
    compile_model(model, TINY.model_copy(update=settings), rate)
    assert {name: getattr(model.optimizer, name) for name in expected} == expected


@pytest.mark.parametrize(("settings", "is_scaled"), [(BFLOAT16, False), (FLOAT16, True)], ids=["bfloat16", "float16"])
def test_fit_with_mixed_precision_has_float32_weights(train_once, settings, is_scaled):
    result, _, _ = train_once(**settings)
    assert {weight.dtype.name for weight in map(np.asarray, result.model.get_weights())} == {"float32"}
    assert np.isfinite(result.history["val_loss"][0])
    assert isinstance(result.model.optimizer, keras.optimizers.LossScaleOptimizer) == is_scaled


@pytest.mark.parametrize(
    ("settings", "after", "group"),
    [
        (FOUR_EPOCHS, 2, 1),
        (FLOAT16, 2, 3),
        (FOUR_EPOCHS | {"ema_momentum": 0.8, "optimizer": "muon", "gradient_accumulation": 3}, 2, 3),
        (HEAD_FIRST, 1, 1),
        (HEAD_FIRST, 2, 1),
    ],
    ids=["plain", "loss scale", "averaged muon between updates", "within the head", "after the head"],
)
def test_fit_resumed_from_a_state_equals_an_uninterrupted_training(train, train_once, settings, after, group):
    """Whatever the number of steps of a group was before."""
    uninterrupted, _, states = train_once(**settings)
    resumed, reported = train(start=states[after - 1], steps_per_execution=group, **settings)
    assert [epoch for epoch, _ in reported] == [1, 2, 3, 4][after:]
    assert history_without_timings(resumed) == history_without_timings(uninterrupted)
    assert resumed.history["epoch_seconds"][:after] == uninterrupted.history["epoch_seconds"][:after]
    assert resumed.best_epoch == uninterrupted.best_epoch
    assert_equal_weights(uninterrupted, resumed)
    for variable, same in zip(uninterrupted.model.optimizer.variables, resumed.model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(variable, same)


def test_fit_with_groups_of_steps_has_the_weights_of_single_steps(train, train_once, monkeypatch, capsys):
    single, _, _ = train_once(**BFLOAT16)
    fitted, keras_fit = [], keras.Model.fit
    monkeypatch.setattr(keras.Model, "fit", lambda *given, **named: fitted.append(named) or keras_fit(*given, **named))
    grouped, _ = train(steps_per_execution=3, **BFLOAT16)  # of 4 steps
    (options,) = fitted
    kinds = [type(callback).__name__ for callback in options.pop("callbacks")]
    assert kinds == ["TerminateOnNonFinite", "EpochMetrics", "BestWeights", "EarlyStopping", "ProgressReporter"]
    assert options.pop("validation_data") is not None
    assert options == {"initial_epoch": 0, "epochs": 2, "steps_per_epoch": 2, "shuffle": False, "verbose": 0}
    assert capsys.readouterr().out == ""
    assert history_without_timings(grouped) == history_without_timings(single)
    assert_equal_weights(grouped, single)


def test_fit_on_growing_images_has_the_same_weights_with_data_on_the_device_in_groups_and_resumed(train, digits):
    settings = {"flip": "alternating", "randaugment_layers": 1, "mixup_alpha": 0.4, "sampling": "balanced"}
    settings |= {"epochs": 3, "progressive_resize": "4:0.6", "schedule": "one_cycle", "fast_layers": True}
    settings |= {"class_weights": "effective", "ema_momentum": 0.8}
    by_host, _ = train(data_on="host", **settings)
    assert by_host.model.input_shape == (None, *digits.image_shape)
    states = []
    on_device, _ = train(data_on="device", steps_per_execution=3, states=states, **settings)
    # after an epoch of two on the smaller images
    resumed, _ = train(data_on="device", start=states[0], **settings)
    assert history_without_timings(by_host) == history_without_timings(on_device) == history_without_timings(resumed)
    assert_equal_weights(by_host, on_device)
    assert_equal_weights(by_host, resumed)


def test_clean_epochs_train_as_without_the_augmentations_that_they_leave_out(train):
    settings, states = {"epochs": 2, "ema_momentum": 0.5}, []
    with_clean_epoch, _ = train(cutout=4, mixup_alpha=1.0, clean_epochs=1, states=states, **settings)
    assert with_clean_epoch.best_epoch == 2
    without, _ = train(start=states[0], **settings)
    assert history_without_timings(with_clean_epoch) == history_without_timings(without)
    assert_equal_weights(with_clean_epoch, without)


@pytest.mark.parametrize(
    ("settings", "traced"),
    [
        ({"clean_epochs": 1}, 1),
        ({"clean_epochs": 1, "data_on": "device"}, 2),
        ({"progressive_resize": "4:0.5"}, 2),
        ({"head_epochs": 1}, 2),
    ],
)
def test_step_is_traced_again_only_for_another_size_or_optimizer_or_with_what_makes_its_batches(
    train, monkeypatch, settings, traced
):
    calls = []

    def count(*given):
        calls.append(given)
        return make_train_function(*given)

    monkeypatch.setattr("pipeline.training.fit.make_train_function", count)
    train(epochs=2, **settings)
    assert len(calls) == traced


def test_training_batches_of_a_size_are_the_means_of_the_pixels_of_the_others(digits):
    plain = TINY.model_copy(update={"translation": 0})
    batches = [make_training_batches(plain, digits, size=size).on_host() for size in ((4, 4), None)]
    (small, *_), (large, *_) = (next(iter(each)) for each in batches)
    means = np.reshape(large, (-1, 4, 2, 4, 2, 1)).mean(axis=(2, 4))
    np.testing.assert_allclose(small, means, atol=0.5)


def test_fit_resumed_after_the_best_epoch_returns_its_weights(train, train_once, overshooting):
    uninterrupted, _, states = train_once(**overshooting)
    resumed, _ = train(start=states[uninterrupted.best_epoch], **overshooting)
    assert resumed.best_epoch == uninterrupted.best_epoch
    assert_equal_weights(uninterrupted, resumed)


def test_early_stopping_of_a_resumed_training_counts_the_epochs_before(train, train_once):
    uninterrupted, _, states = train_once(**NOT_LEARNING)
    last = len(uninterrupted.history["loss"])
    _, reported = train(start=states[last - 2], **NOT_LEARNING)
    assert [epoch for epoch, _ in reported] == [last]
    _, reported = train(start=states[last - 1], **NOT_LEARNING)
    assert reported == [], "it had stopped"


def test_fit_from_a_state_of_another_model_raises_usage_error(train, train_once):
    _, _, states = train_once(**NOT_LEARNING)
    with pytest.raises(UsageError, match="^a checkpoint must fit the model"):
        train(start=states[0], filters=4)


def changed_layers(before, after):
    """Return the names of the layers of which a weight or a statistic has another value by path."""
    return {path.rpartition("/")[0] for path, value in after.items() if (value != before[path]).any()}


def weights_by_path(model, values=None):
    """Return a model's weights by path, or other values of them in their order."""
    values = map(np.array, model.weights) if values is None else values
    return {weight.path: value for weight, value in zip(model.weights, values, strict=False)}


BLOCK = {"block1_depthwise", "block1_depthwise_norm", "block1_pointwise", "block1_pointwise_norm"}
BLOCK_2 = {name.replace("block1", "block2") for name in BLOCK}
STEM = {"patch_embedding", "patch_embedding_norm"}


def initial_weights(digits, depth):
    keras.utils.set_random_seed(TINY.seed)
    return weights_by_path(build_model(TINY.model_copy(update={"depth": depth}), digits.image_shape, 10))


@pytest.mark.parametrize("fast_layers", [{}, {"fast_layers": True}], ids=["stock", "fast"])
def test_fit_changes_weights_and_statistics_of_all_layers(train_once, digits, fast_layers):
    result, _, _ = train_once(**fast_layers)
    assert changed_layers(initial_weights(digits, 1), weights_by_path(result.model)) == STEM | BLOCK | {HEAD}


@pytest.mark.parametrize("fast_layers", [{}, {"fast_layers": True}], ids=["stock", "fast"])
def test_frozen_layers_keep_weights_and_statistics(train_once, digits, fast_layers):
    result, _, states = train_once(**HEAD_FIRST, **fast_layers)
    before, after_head = initial_weights(digits, 2), weights_by_path(result.model, states[1].variables)
    assert changed_layers(before, after_head) == {HEAD}
    assert changed_layers(before, weights_by_path(result.model, states[1].best_weights)) == {HEAD}
    assert result.best_epoch > 2, "the case shows nothing if the head alone is better"
    assert changed_layers(after_head, weights_by_path(result.model)) == BLOCK_2 | {HEAD}


def test_head_epochs_come_first_and_the_schedule_begins_anew_after_them(train_once):
    result, _, _ = train_once(**HEAD_FIRST)
    rates = result.history["learning_rate"]
    assert rates[:2] == rates[2:] and rates[0] > rates[1]


def test_learning_rate_share_falls_from_the_last_layer_to_the_patch_embedding():
    config = TINY.model_copy(update={"depth": 2, "layer_decay": 0.5})
    paths = (f"{HEAD}/bias", "block2_pointwise_norm/gamma", "block1_depthwise/kernel", "patch_embedding/kernel")
    assert [learning_rate_share(config, path) for path in paths] == [1, 0.5, 0.25, 0.125]


def test_layer_decay_shortens_the_steps_of_earlier_layers(digits):
    (before, whole), (_, decayed) = (
        weights_after_a_step(digits, layer_decay=decay, weight_decay=0.0) for decay in (1.0, 0.1)
    )
    for path, share in (("block1_pointwise/kernel", 0.1), ("patch_embedding/kernel", 0.01), (f"{HEAD}/kernel", 1.0)):
        np.testing.assert_allclose(decayed[path] - before[path], share * (whole[path] - before[path]), atol=2e-6)


def test_fit_with_initial_weights_starts_from_them_with_the_teacher_strategy_and_bar_that_it_is_given(
    train_once, digits, capsys
):
    source, _, _ = train_once()
    layers = {layer.name: layer.get_weights() for layer in source.model.layers if layer.weights}
    initial = InitialWeights("models:/m-1", layers, {"depth": TINY.depth}, classes=digits.classes)
    changes = {"epochs": 1, "learning_rate": 1e-9, "seed": 7, "teacher": "models:/m-2", "teacher_weight": 0.5}
    config = TINY.model_copy(update=changes)
    taught, strategy = [], tf.distribute.OneDeviceStrategy("/cpu:0")
    # one whose answers are the labels
    teacher = SimpleNamespace(
        check=lambda *given: None, build=lambda *given: taught.append(given) or (lambda batch: batch)
    )
    options = {"teacher": teacher, "strategy": strategy, "progress_bar": True}
    result = fit(config, digits, initial_weights=initial, **options)
    assert taught == [(config, digits)] and result.model.distribute_strategy is strategy
    out = capsys.readouterr().out
    assert "4/4" in out and "val_loss" in out
    assert result.model.train_function is None, "it would hold images on the device"
    for weight, same in zip(result.model.trainable_weights, source.model.trainable_weights, strict=True):
        np.testing.assert_allclose(weight, same, atol=1e-6)


@pytest.fixture(scope="module")
def joined():
    return load_dataset(DataConfig(dataset="digits", train_examples=200, refit=True), seed=0)


@pytest.fixture(scope="module")
def refit(joined):
    """Return the settings of a refit with a momentum of averages or None, its result, and its reports and states.

    The learning rate is such that an earlier epoch would be chosen.
    """

    @functools.cache
    def run(ema_momentum):
        changes = OVERSHOOTING | {"epochs": 3, "refit": True, "ema_momentum": ema_momentum}
        reported, states = [], []
        callbacks = [ProgressReporter(lambda *epoch: reported.append(epoch)), CheckpointSaver(states.append)]
        return changes, fit(TINY.model_copy(update=changes), joined, callbacks), reported, states

    return run


@pytest.mark.parametrize("ema_momentum", [None, 0.5])
def test_refit_ends_with_the_weights_of_the_last_epoch_and_resumes_to_the_last_bit(train, refit, joined, ema_momentum):
    changes, whole, reported, states = refit(ema_momentum)
    assert whole.best_epoch == 3 and len(reported) == 3
    assert not [name for name in whole.history if name.startswith("val_")]
    assert all(epoch["images_per_second"] > 0 for _, epoch in reported)
    for weight, same in zip(whole.model.get_weights(), states[-1].best_weights, strict=True):
        np.testing.assert_array_equal(weight, same)
    for start in (states[0], states[-1]):
        resumed, _ = train(start=start, dataset=joined, **changes)
        assert_equal_weights(whole, resumed)
        assert history_without_timings(resumed) == history_without_timings(whole)


def test_refit_with_ema_returns_the_averages(refit):
    (_, raw, *_), (_, averaged, *_) = refit(None), refit(0.5)
    assert raw.history["loss"] == averaged.history["loss"]
    assert not np.array_equal(raw.model.get_weights()[0], averaged.model.get_weights()[0])


@pytest.fixture(scope="module")
def unequal(tmp_path_factory):
    """Digits of which the first has 60 training images, and the second 4."""
    all_digits = load_dataset(DataConfig(dataset="digits"), seed=0)
    images, labels = all_digits.train.take(np.arange(len(all_digits.train)))
    rows = np.concatenate([np.flatnonzero(labels == 0)[:60], np.flatnonzero(labels == 1)[:4]])
    held_out = np.concatenate([np.flatnonzero(labels == label)[60:120] for label in (0, 1)])
    path = tmp_path_factory.mktemp("unequal") / "digits.npz"
    arrays = {"x_train": images[rows], "y_train": labels[rows]}
    for part in ("val", "test"):
        arrays |= {f"x_{part}": images[held_out], f"y_{part}": labels[held_out]}
    np.savez(path, **arrays)
    return load_dataset(DataConfig(dataset=str(path)), seed=0)


def rare_class_recall(unequal, **changes):
    settings = {"epochs": 4, "batch_size": 8, "learning_rate": 0.01} | changes
    result = fit(TINY.model_copy(update=settings), unequal)
    batches = evaluation_batches(TINY, unequal, unequal.test)
    predicted = result.model.predict(batches, verbose=0).argmax(axis=1)
    labels = unequal.test.labels[unequal.test.rows]
    return (predicted[labels == 1] == 1).mean()


@pytest.fixture(scope="module")
def recall_of_equal_images(unequal):
    return rare_class_recall(unequal)


@pytest.mark.parametrize(
    "settings", [{"class_weights": "balanced"}, {"sampling": "balanced"}], ids=["weights", "sampling"]
)
def test_rare_class_is_recognized_more_often_where_its_images_count_more(unequal, recall_of_equal_images, settings):
    assert rare_class_recall(unequal, **settings) > recall_of_equal_images + 0.1
