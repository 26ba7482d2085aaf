"""Results of a trained model on the test set."""

import keras
import numpy as np
import pytest

from pipeline.config.training import DataConfig, TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.evaluation.metrics import is_correct
from pipeline.model.conv_mixer import build_model
from pipeline.serving.packaging import save_keras, save_pyfunc
from pipeline.tracking.tags import Tag
from pipeline.tracking.test_set_access import access_count
from pipeline.training import benchmark
from pipeline.training.checkpoint import write_weights
from pipeline.training.fit import TrainingResult
from pipeline.training.results import (
    evaluate_on_test_set,
    evaluate_winner,
    log_trained_model,
    log_training,
    log_validation_predictions,
    middle_block,
    register_model,
    serving_model,
)


class RecordingRun:
    """A run that remembers what is logged to it."""

    id = "recording"
    name = "digits depth=3"

    def __init__(self):
        self.tables, self.figures, self.tags, self.results, self.models, self.registered = {}, {}, {}, {}, [], []
        self.set_tags, self.log_results = self.tags.update, self.results.update
        self.images, self.views, self.log_model = {}, {}, self.models.append

    def log_table(self, name, table, *, view=None):
        self.tables[name] = table
        if view is not None:
            self.views[name] = view

    def log_figure(self, name, figure, **_):
        self.figures[name] = figure

    def log_image(self, key, figure, *, step=0, copies=()):
        self.images[key, step] = figure
        self.figures |= dict.fromkeys(copies, figure)

    def register_model(self, name, save, *, classes, tags):
        self.registered.append((name, save, classes, tags))


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(dataset="digits", train_examples=200), seed=0)


@pytest.fixture(scope="module")
def model():
    """Return a model whose output depends on the position of a pixel."""
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense(10, activation="softmax")
    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), dense])


def moved(images, pixels):
    """Move images (b, h, w, c) down and right by a pixel, or up and left, with edges reflected."""
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    return padded[:, 1 - pixels :, 1 - pixels :][:, :8, :8]


@pytest.mark.parametrize(
    ("name", "views"),
    [
        ("mirrored", lambda images: [images, images[:, :, ::-1]]),
        ("shifted", lambda images: [moved(side, by) for side in (images, images[:, :, ::-1]) for by in (0, -1, 1)]),
    ],
)
def test_evaluate_on_test_set_with_views_adds_the_accuracy_of_averaged_probabilities(digits, model, name, views):
    plain, averaged = (
        evaluate_on_test_set(RecordingRun(), model, TrainingConfig.build({"test_time_views": each}), digits)
        for each in ("one", name)
    )
    images, labels = digits.test.take(np.arange(len(digits.test)))
    probabilities = np.mean([model.predict(view, verbose=0) for view in views(images)], axis=0)
    assert averaged.pop("test_accuracy_views") == pytest.approx(np.mean(probabilities.argmax(axis=1) == labels))
    assert averaged == plain
    one = model.predict(images, verbose=0)
    assert not np.array_equal(one.argmax(axis=1), probabilities.argmax(axis=1)), "the case shows nothing"


def test_evaluate_on_test_set_counts_the_access_before_it_predicts(digits):
    run = RecordingRun()

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


SMALL = TrainingConfig.build(
    {"dataset": "digits", "filters": 4, "depth": 3, "kernel_size": 3, "precision": "float32", "fast_layers": False}
)


@pytest.fixture(scope="module")
def trained(digits):
    """Return a ConvMixer with random weights."""
    keras.utils.set_random_seed(1)
    return build_model(SMALL, digits.image_shape, len(digits.classes))


@pytest.mark.parametrize("snapshots", [None, {1: np.zeros((3, 3, 4, 1)), 2: np.ones((3, 3, 4, 1))}])
def test_log_training_logs_the_history_from_epoch_1_and_the_kernels_of_every_block(trained, snapshots):
    run = RecordingRun()
    names = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_seconds", "images_per_second")
    history = {name: [0.25 + number, 0.5] for number, name in enumerate(names)}
    log_training(run, SMALL, TrainingResult(trained, history, best_epoch=1), snapshots=snapshots)
    assert run.tables["history.csv"].to_dict("list") == {"epoch": [1, 2]} | history
    blocks = [f"plots/depthwise_kernels/block_{block}.png" for block in (1, 2, 3)]
    figures = {"plots/curves.png", "plots/patch_embeddings.png", "plots/depthwise_kernels.png", *blocks}
    assert run.figures.keys() == figures | ({"plots/filters_over_epochs.png"} if snapshots else set())
    assert run.figures["plots/depthwise_kernels.png"] is run.figures[blocks[1]], "the middle one"
    steps = [("depthwise_kernels_by_block", block) for block in (1, 2, 3)]
    assert run.images.keys() == {*steps, *[("depthwise_kernels_by_epoch", epoch) for epoch in snapshots or ()]}


@pytest.mark.parametrize(("depth", "middle"), [(1, 1), (2, 1), (3, 2), (8, 4)])
def test_middle_block_is_counted_from_1(depth, middle):
    assert middle_block(TrainingConfig(depth=depth)) == middle


def test_evaluate_on_test_set_logs_every_image_and_class(digits, model):
    run = RecordingRun()
    results = evaluate_on_test_set(run, model, TrainingConfig(), digits)
    images, labels = digits.test.take(np.arange(len(digits.test)))
    probabilities = model.predict(images, verbose=0)
    right = probabilities.argmax(axis=1) == labels
    assert results["test_accuracy"] == pytest.approx(right.mean())
    of_the_label = np.clip(probabilities[np.arange(len(labels)), labels], 1e-7, 1)
    assert results["test_loss"] == pytest.approx(-np.log(of_the_label).mean(), rel=1e-4)
    assert results.keys() == {"test_loss", "test_accuracy", "test_balanced_accuracy", "test_macro_f1"}
    predictions = run.tables["test_predictions.csv"]
    assert len(predictions) == len(labels) and is_correct(predictions).tolist() == right.tolist()
    assert run.tables["per_class.csv"].shape[0] == 10
    assert run.views["per_class.csv"].columns[:2].tolist() == ["class", "recall"]
    assert sorted(run.views["test_predictions.csv"]["image"]) == sorted(predictions["image"])
    assert run.figures.keys() == {"plots/confusion_matrix.png", "plots/mistakes.png"}
    pictures = [axes for axes in run.figures["plots/mistakes.png"].axes if axes.images]
    assert len(pictures) == min(25, (~right).sum())


def test_log_validation_predictions_logs_the_validation_images(digits, model):
    run = RecordingRun()
    log_validation_predictions(run, model, TrainingConfig(), digits)
    images, labels = digits.validation.take(np.arange(len(digits.validation)))
    table = run.tables["validation_predictions.csv"]
    assert table["label"].tolist() == labels.tolist()
    assert table["predicted"].tolist() == model.predict(images, verbose=0).argmax(axis=1).tolist()
    per_class = run.tables["validation_per_class.csv"]
    assert per_class["images"].sum() == len(labels) and "validation_per_class.csv" not in run.views
    assert "validation_predictions.csv" in run.views and Tag.TEST_SET_ACCESSES not in run.tags


def test_log_trained_model_logs_stock_layers_with_the_first_validation_image(digits, trained):
    run = RecordingRun()
    log_trained_model(run, trained, SMALL.model_copy(update={"resize": "pad"}), digits)
    (save,) = run.models
    assert save.func is save_keras and save.keywords["classes"] == digits.classes
    assert save.keywords["resize"] == "pad"
    np.testing.assert_array_equal(save.keywords["example"], digits.validation.take(np.arange(1))[0])
    assert save.keywords["example"].dtype == np.float32
    for weight, same in zip(trained.get_weights(), save.keywords["model"].get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)


def test_register_model_registers_the_served_form_with_its_results_as_tags(digits, trained, monkeypatch):
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    run = RecordingRun()
    config = SMALL.model_copy(update={"register_as": "numbers", "resize": "crop"})
    latency = register_model(run, trained, config, digits, {"test_accuracy": 0.9876543, "other": 1.0})
    ((name, save, classes, tags),) = run.registered
    assert (name, save.func, classes) == ("numbers", save_pyfunc, digits.classes)
    assert save.keywords["images"].shape == (32, 8, 8, 1) and save.keywords["classes"] == digits.classes
    assert save.keywords["resize"] == "crop"
    np.testing.assert_array_equal(save.keywords["model"].get_weights()[0], trained.get_weights()[0])
    assert tags == {
        Tag.DATA: "digits",
        Tag.DATA_FINGERPRINT: digits.fingerprint,
        "test_accuracy": "0.987654",
        "latency_ms": f"{latency:.6g}",
    }
    assert 0 < latency < 10_000


@pytest.mark.parametrize("register_as", [None, "numbers"])
def test_evaluate_winner_logs_model_and_results_of_the_weights(digits, trained, tmp_path, monkeypatch, register_as):
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    write_weights(tmp_path / "weights", trained.get_weights())
    run, config = RecordingRun(), SMALL.model_copy(update={"register_as": register_as})
    results = evaluate_winner(run, config, digits, tmp_path / "weights")
    expected = evaluate_on_test_set(RecordingRun(), trained, config, digits)
    assert {name: results[name] for name in expected} == pytest.approx(expected)
    assert run.results == results and results.keys() - expected.keys() == ({"latency_ms"} if register_as else set())
    assert len(run.models) == 1 and len(run.registered) == bool(register_as)
    assert access_count(run.tags, run_id=run.id, tested=False) == 1
