"""Results of a trained model: its history, its figures, its predictions, and what is served of it."""

from dataclasses import replace

import keras
import numpy as np
import pytest

from pipeline.config.training import DataConfig, TrainingConfig
from pipeline.data.dataset import load_dataset
from pipeline.evaluation.figures import training
from pipeline.evaluation.metrics import is_correct
from pipeline.model.conv_mixer import HEAD, build_model, depthwise_kernels, patch_kernels
from pipeline.model.ensemble import build_ensemble
from pipeline.serving.packaging import save_keras, save_pyfunc
from pipeline.tracking.tags import Tag
from pipeline.tracking.test_set_access import access_count
from pipeline.training import benchmark
from pipeline.training.checkpoint import write_weights
from pipeline.training.fit import TrainingResult, compile_model, evaluation_batches
from pipeline.training.results import (
    evaluate_on_test_set,
    evaluate_winner,
    log_out_of_fold_predictions,
    log_trained_model,
    log_training,
    log_validation_predictions,
    middle_block,
    register_model,
    serving_model,
)
from pipeline.training.schedules import LearningRateSchedule
from tests.support.figures import title


class RecordingRun:
    """A run that remembers what is logged to it."""

    id = "recording"
    name = "digits depth=3"

    def __init__(self):
        self.tables, self.figures, self.tags, self.results, self.models, self.registered = {}, {}, {}, {}, [], []
        self.set_tags, self.log_results = self.tags.update, self.results.update
        self.images, self.views, self.log_model = {}, {}, self.models.append
        self.keys = {}  # of figures that MLflow's chart view compares

    def log_table(self, name, table, *, view=None):
        self.tables[name] = table
        if view is not None:
            self.views[name] = view

    def log_figure(self, name, figure, *, key=None):
        self.figures[name] = figure
        if key is not None:
            self.keys[name] = key

    def log_image(self, key, figure, *, step=0, copies=()):
        self.images[key, step] = figure
        self.figures |= dict.fromkeys(copies, figure)

    def register_model(self, name, save, *, classes, tags):
        self.registered.append((name, save, classes, tags))


def with_files(split):
    """Return a split whose images have files."""
    return replace(split, files=np.array([b"part/%d.png" % row for row in range(len(split.labels))]))


@pytest.fixture(scope="module")
def digits():
    whole = load_dataset(DataConfig(dataset="digits", train_examples=200), seed=0)
    return replace(whole, validation=with_files(whole.validation), test=with_files(whole.test))


@pytest.fixture(scope="module")
def folded():
    """Return digits in two folds."""
    whole = load_dataset(DataConfig(dataset="digits", train_examples=111, folds=2), seed=0)
    return replace(whole, train=with_files(whole.train))


def pictures(figure):
    """Return the images in a figure."""
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.images]


def assert_same_figure(figure, expected):
    assert title(figure) == title(expected)
    for one, same in zip(pictures(figure), pictures(expected), strict=True):
        np.testing.assert_array_equal(one, same)


def captions(figure):
    """Return what stands above and below each image of a grid."""
    grid = [axes for axes in figure.axes if axes.images]
    return [(axes.get_title(), axes.get_xlabel(), *(text.get_text() for text in axes.texts)) for axes in grid]


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
def test_evaluate_on_test_set_with_views_adds_the_accuracy_of_averaged_probabilities(
    digits, model, capsys, name, views
):
    plain, averaged = (
        evaluate_on_test_set(RecordingRun(), model, TrainingConfig.build({"test_time_views": each}), digits)
        for each in ("one", name)
    )
    images, labels = digits.test.take(np.arange(len(digits.test)))
    probabilities = np.mean([model.predict(view, verbose=0) for view in views(images)], axis=0)
    assert averaged.pop("test_accuracy_views") == pytest.approx(np.mean(probabilities.argmax(axis=1) == labels))
    assert averaged == plain
    assert capsys.readouterr() == ("", "")
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
    keys = {f"plots/{key}.png": key for key in ("curves", "patch_embeddings", "depthwise_kernels")}
    figures = {*keys, *blocks}
    assert run.figures.keys() == figures | ({"plots/filters_over_epochs.png"} if snapshots else set())
    assert run.figures["plots/depthwise_kernels.png"] is run.figures[blocks[1]], "the middle one"
    steps = [("depthwise_kernels_by_block", block) for block in (1, 2, 3)]
    assert run.images.keys() == {*steps, *[("depthwise_kernels_by_epoch", epoch) for epoch in snapshots or ()]}
    assert run.keys == keys


SUBJECT = "my digits, run digits depth=3"


def test_log_training_draws_the_trained_kernels_and_the_snapshots_with_data_and_run_in_their_titles(trained):
    run, snapshots = RecordingRun(), {epoch: np.random.default_rng(epoch).normal(size=(3, 3, 4, 1)) for epoch in (0, 2)}
    config = SMALL.model_copy(update={"dataset": "/data/my digits", "monitor": "val_macro_f1"})
    names = ("loss", "accuracy", "val_loss", "val_accuracy", "val_macro_f1", "learning_rate")
    history = {name: [0.25, 0.5] for name in names}
    log_training(run, config, TrainingResult(trained, history, best_epoch=2), snapshots=snapshots)
    curves = training.curves(history, best_epoch=2, monitor="val_macro_f1", subject=SUBJECT)
    assert "best epoch 2 of 2: validation macro F1" in title(curves)
    assert_same_figure(run.figures["plots/curves.png"], curves)
    assert_same_figure(
        run.figures["plots/patch_embeddings.png"], training.patch_embeddings(patch_kernels(trained), subject=SUBJECT)
    )
    for block in (1, 2, 3):
        expected = training.depthwise_kernels(depthwise_kernels(trained, block), block=block, subject=SUBJECT)
        assert_same_figure(run.images["depthwise_kernels_by_block", block], expected)
    for epoch, kernels in snapshots.items():
        expected = training.depthwise_kernels(kernels, block=2, subject=SUBJECT)
        assert_same_figure(run.images["depthwise_kernels_by_epoch", epoch], expected)
    expected = training.filters_over_epochs(snapshots, block=2, subject=SUBJECT)
    assert_same_figure(run.figures["plots/filters_over_epochs.png"], expected)


def test_figures_of_a_run_without_a_name_name_the_beginning_of_its_id(trained):
    run = RecordingRun()
    run.name, run.id = "", "0123456789abcdef"
    history = {name: [0.5] for name in ("loss", "accuracy", "learning_rate")}
    log_training(run, SMALL, TrainingResult(trained, history, best_epoch=1))
    assert title(run.figures["plots/curves.png"]).startswith("\nTraining curves: digits, run 01234567\n")


@pytest.mark.parametrize(("depth", "middle"), [(1, 1), (2, 1), (3, 2), (8, 4)])
def test_middle_block_is_counted_from_1(depth, middle):
    assert middle_block(TrainingConfig(depth=depth)) == middle


def test_evaluate_on_test_set_logs_every_image_and_class(digits, model, capsys):
    run = RecordingRun()
    results = evaluate_on_test_set(run, model, TrainingConfig(), digits)
    images, labels = digits.test.take(np.arange(len(digits.test)))
    probabilities = model.predict(images, verbose=0)
    right = probabilities.argmax(axis=1) == labels
    assert results["test_accuracy"] == pytest.approx(right.mean())
    of_the_label = np.clip(probabilities[np.arange(len(labels)), labels], np.finfo(np.float32).tiny, 1)
    assert results["test_loss"] == pytest.approx(-np.log(of_the_label).mean(), rel=1e-4)
    assert results.keys() == {"test_loss", "test_accuracy", "test_balanced_accuracy", "test_macro_f1"}
    recalls = np.array([right[labels == label].mean() for label in range(10)])
    assert results["test_balanced_accuracy"] == pytest.approx(recalls.mean())
    per_class = run.tables["per_class.csv"]
    assert per_class["class"].tolist() == list(digits.classes) and per_class["recall"].tolist() == recalls.tolist()
    assert results["test_macro_f1"] == pytest.approx(per_class["f1"].mean())
    predictions = run.tables["test_predictions.csv"]
    assert predictions["file"].tolist() == digits.test.file_names()
    hexadecimal = [digest.hex()[:16] for digest in digits.test.image_digests[digits.test.rows].tolist()]
    assert predictions["image"].tolist() == hexadecimal
    assert len(predictions) == len(labels) and is_correct(predictions).tolist() == right.tolist()
    assert run.views["per_class.csv"].columns[:2].tolist() == ["class", "recall"]
    assert sorted(run.views["test_predictions.csv"]["image"]) == sorted(predictions["image"])
    assert run.figures.keys() == {"plots/confusion_matrix.png", "plots/mistakes.png"}
    assert run.keys == {"plots/confusion_matrix.png": "confusion_matrix", "plots/mistakes.png": "mistakes"}
    assert capsys.readouterr() == ("", "")


def test_test_loss_of_certain_errors_is_the_loss_that_keras_reports_of_a_validation(digits):
    config = SMALL.model_copy(update={"jit_compile": False})
    model = build_model(config, digits.image_shape, 10)
    # from logits of 0 to 60, so that it is certain of the last class
    model.get_layer(HEAD).bias.assign(np.linspace(0, 60, 10))
    compile_model(model, config, LearningRateSchedule("constant", peak=0.1, steps=1, warmup_fraction=0))
    batches = evaluation_batches(config, digits, digits.test)
    loss = model.evaluate(batches, verbose=0, return_dict=True)["loss"]
    assert evaluate_on_test_set(RecordingRun(), model, config, digits)["test_loss"] == pytest.approx(loss, rel=1e-5)


def test_evaluate_on_test_set_draws_the_confusions_and_the_most_confident_mistakes(digits, model):
    run = RecordingRun()
    evaluate_on_test_set(run, model, TrainingConfig(), digits)
    images, labels = digits.test.take(np.arange(len(digits.test)))
    probabilities = model.predict(images, verbose=0)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, predicted), 1)
    subject = "digits, test split, run digits depth=3"
    expected = training.confusion_matrix(counts, classes=digits.classes, subject=subject)
    assert_same_figure(run.figures["plots/confusion_matrix.png"], expected)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:25]
    assert len(worst) == 25
    expected = training.mistakes(
        images[worst],
        true=[digits.classes[label] for label in labels[worst]],
        predicted=[digits.classes[label] for label in predicted[worst]],
        confidence=list(confidence[worst]),
        wrong=len(wrong),
        of=180,
        files=digits.test.file_names(worst),
        subject=subject,
    )
    assert_same_figure(run.figures["plots/mistakes.png"], expected)
    assert captions(run.figures["plots/mistakes.png"]) == captions(expected)


def labels_and_doubts(folded, doubted):
    """Return the labels out of fold, and probabilities by which the first images more probably are of the next class.

    The later of them are the more probable.
    """
    labels = folded.out_of_fold.labels[folded.out_of_fold.rows]
    probabilities = np.full((len(labels), 10), 0.01)
    probabilities[np.arange(len(labels)), labels] = 0.91
    first = np.arange(doubted)
    probabilities[first, labels[:doubted]] = 0.01
    probabilities[first, (labels[:doubted] + 1) % 10] = 0.9 + 0.001 * first
    return labels, probabilities


def test_log_out_of_fold_predictions_logs_all_images_and_those_that_are_probably_mislabeled(folded):
    run = RecordingRun()
    labels, probabilities = labels_and_doubts(folded, 30)
    line = log_out_of_fold_predictions(run, folded, probabilities)
    assert line == (
        f"labels   30 of {len(labels)} images are probably mislabeled, by networks that are right about "
        f"{100 - 3000 / len(labels):.1f} %: see probably_mislabeled.csv and its plot"
    )
    assert run.tables.keys() == {"validation_predictions.csv", "validation_per_class.csv", "probably_mislabeled.csv"}
    split, names = folded.out_of_fold, np.array(folded.classes)
    predictions = run.tables["validation_predictions.csv"]
    assert predictions["label"].tolist() == labels.tolist() and predictions["file"].tolist() == split.file_names()
    assert predictions["probability_of_class"].tolist() == [0.01] * 30 + [0.91] * (len(labels) - 30)
    assert run.views.keys() == {"validation_predictions.csv"}
    assert run.tables["validation_per_class.csv"]["images"].tolist() == np.bincount(labels).tolist()
    table = run.tables["probably_mislabeled.csv"]
    order = np.arange(30)[::-1]
    assert table["file"].tolist() == [split.file_names()[position] for position in order]
    assert table["image"].tolist() == predictions["image"][order].tolist()
    assert table["class"].tolist() == names[labels[order]].tolist()
    assert table["suggested_class"].tolist() == names[(labels[order] + 1) % 10].tolist()
    assert table["probability_of_suggested_class"].tolist() == pytest.approx((0.9 + 0.001 * order).tolist())


def test_log_out_of_fold_predictions_draws_the_confusions_and_the_images_that_are_most_probably_mislabeled(folded):
    run = RecordingRun()
    labels, probabilities = labels_and_doubts(folded, 30)
    log_out_of_fold_predictions(run, folded, probabilities)
    assert run.figures.keys() == {"plots/confusion_matrix_out_of_fold.png", "plots/probably_mislabeled.png"}
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    subject = "out of fold, digits, run digits depth=3"
    expected = training.confusion_matrix(counts, classes=folded.classes, subject=subject)
    assert_same_figure(run.figures["plots/confusion_matrix_out_of_fold.png"], expected)
    figure, order = run.figures["plots/probably_mislabeled.png"], np.arange(30)[::-1][:25]
    assert title(figure).startswith(
        f"\nProbably mislabeled: digits, run digits depth=3\nthe 25 most probable of 30, in {len(labels)} images"
    )
    images, _ = folded.out_of_fold.take(order)
    for picture, image in zip(pictures(figure), images, strict=True):
        np.testing.assert_array_equal(picture, image[..., 0])
    files = [name.rpartition("/")[2] for name in folded.out_of_fold.file_names(order)]
    names = folded.classes
    assert captions(figure) == [
        (f"{names[(label + 1) % 10]} ({90 + 0.1 * position:.1f} %)", names[label], file)
        for position, label, file in zip(order, labels[order], files, strict=True)
    ]


def test_log_out_of_fold_predictions_without_doubts_says_so(folded):
    run = RecordingRun()
    labels, probabilities = labels_and_doubts(folded, 0)
    line = log_out_of_fold_predictions(run, folded, probabilities)
    of_all = f"0 of {len(labels)} images are probably mislabeled"
    assert line == f"labels   {of_all}, by networks that are right about 100.0 %"
    assert len(run.tables["probably_mislabeled.csv"]) == 0


def test_log_validation_predictions_logs_the_validation_images(digits, model, capsys):
    run = RecordingRun()
    log_validation_predictions(run, model, TrainingConfig(), digits)
    images, labels = digits.validation.take(np.arange(len(digits.validation)))
    table = run.tables["validation_predictions.csv"]
    assert table["label"].tolist() == labels.tolist()
    assert table["predicted"].tolist() == model.predict(images, verbose=0).argmax(axis=1).tolist()
    per_class = run.tables["validation_per_class.csv"]
    assert per_class["images"].sum() == len(labels) and "validation_per_class.csv" not in run.views
    assert "validation_predictions.csv" in run.views and Tag.TEST_SET_ACCESSES not in run.tags
    assert table["class"].tolist() == [digits.classes[label] for label in labels]
    assert table["file"].tolist() == digits.validation.file_names()
    assert per_class["class"].tolist() == list(digits.classes)
    assert capsys.readouterr() == ("", "")


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


def test_register_model_tags_the_version_with_what_the_run_monitors(digits, trained, monkeypatch):
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    run, config = RecordingRun(), SMALL.model_copy(update={"register_as": "numbers", "monitor": "val_macro_f1"})
    few = replace(digits, validation=replace(digits.validation, rows=digits.validation.rows[:5]))
    results = {"test_accuracy": 0.5, "test_macro_f1": 0.25, "test_loss": 1.0, "parameters": 1234567}
    register_model(run, trained, config, few, results)
    ((_, save, _, tags),) = run.registered
    del tags["latency_ms"]
    known = {Tag.DATA: "digits", Tag.DATA_FINGERPRINT: digits.fingerprint}
    assert tags == known | {"test_macro_f1": "0.25", "test_accuracy": "0.5", "parameters": "1.23457e+06"}
    np.testing.assert_array_equal(save.keywords["images"], few.validation.take(slice(None))[0])


def test_log_trained_model_without_validation_images_has_the_first_training_image(digits, trained):
    run = RecordingRun()
    refit = replace(digits, validation=replace(digits.validation, rows=digits.validation.rows[:0]))
    log_trained_model(run, trained, SMALL, refit)
    np.testing.assert_array_equal(run.models[0].keywords["example"], digits.train.take(slice(1))[0])


def test_serving_model_of_an_ensemble_is_the_ensemble(digits, trained):
    ensemble = build_ensemble([serving_model(trained, SMALL, digits)] * 2)
    assert serving_model(ensemble, SMALL, digits) is ensemble


def test_evaluate_winner_with_folds_logs_the_mean_of_its_networks_and_their_predictions_out_of_fold(folded, tmp_path):
    config = SMALL.model_copy(update={"folds": 2, "depth": 1})
    networks = []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        networks.append(build_model(config, folded.image_shape, len(folded.classes)))
    write_weights(tmp_path / "weights", [weight for network in networks for weight in network.get_weights()])
    run = RecordingRun()
    results = evaluate_winner(run, config, folded, tmp_path / "weights")
    images, labels = folded.test.take(slice(None))
    mean = np.mean([network.predict(images, verbose=0) for network in networks], axis=0)
    assert results["test_accuracy"] == pytest.approx((mean.argmax(axis=1) == labels).mean())
    assert run.results == results and len(run.models) == 1
    predicted, together = run.tables["validation_predictions.csv"]["predicted"], folded.out_of_fold
    assert len(predicted) == len(together) and "probably_mislabeled.csv" in run.tables
    for fold, network in zip(folded.folds, networks, strict=True):
        own = network.predict(fold.take(slice(None))[0], verbose=0).argmax(axis=1)
        assert predicted[np.isin(together.rows, fold.rows)].tolist() == own.tolist()


def test_evaluate_winner_with_refit_logs_no_validation(digits, trained, tmp_path):
    write_weights(tmp_path / "weights", trained.get_weights())
    run, config = RecordingRun(), SMALL.model_copy(update={"refit": True, "precision": "mixed_bfloat16"})
    try:
        evaluate_winner(run, config, digits, tmp_path / "weights")
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert run.tables.keys() == {"per_class.csv", "test_predictions.csv"}


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
    for weight, same in zip(run.models[0].keywords["model"].get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    predictions = run.tables["validation_predictions.csv"]
    assert predictions["label"].tolist() == digits.validation.labels[digits.validation.rows].tolist()
    if register_as:
        ((name, save, _, tags),) = run.registered
        assert (name, tags["test_accuracy"]) == ("numbers", f"{results['test_accuracy']:.6g}")
        assert tags["latency_ms"] == f"{results['latency_ms']:.6g}"
        np.testing.assert_array_equal(save.keywords["model"].get_weights()[0], trained.get_weights()[0])
