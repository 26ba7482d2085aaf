"""What a trained model leaves in its run: history and plots, the model itself, and its results on the test set."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import pandas as pd
import tensorflow as tf

from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import Dataset, Split
from pipeline.data.views import VIEWS, View
from pipeline.evaluation import metrics
from pipeline.evaluation.figures import training
from pipeline.evaluation.figures.image_grid import mislabeled_images
from pipeline.evaluation.mislabeled import find_label_errors, label_errors_table
from pipeline.model.conv_mixer import build_model, build_stock_model, depthwise_kernels, patch_kernels
from pipeline.model.ensemble import ensemble_members
from pipeline.runtime.text import count, percent
from pipeline.serving.packaging import COMPARED_IMAGES, save_keras, save_pyfunc
from pipeline.tracking.run import TrackedRun
from pipeline.tracking.tags import Tag
from pipeline.tracking.test_set_access import access_tags
from pipeline.training.benchmark import time_prediction
from pipeline.training.checkpoint import read_weights
from pipeline.training.cross_validation import CrossValidation
from pipeline.training.fit import TrainingResult, evaluation_batches

# images in the figure of the most confident errors
MOST_CONFIDENT_ERRORS = 25
# images in the figure of those that are probably mislabeled
MISLABELED_IMAGES = 25
# results that are also tags of a registered version
VERSION_METRICS = ("test_accuracy", "latency_ms", "parameters")


def log_training(
    run: TrackedRun,
    config: TrainingConfig,
    result: TrainingResult,
    *,
    snapshots: Mapping[int, npt.NDArray] | None = None,
) -> None:
    """Log the history of a training, and the kernels that it ended with.

    Args:
        run: The run of the training.
        config: Its settings.
        result: Its history and model.
        snapshots: By epoch, kernels (k, k, filters, 1) of the middle block, see `KernelSnapshots`.
    """
    log_history(run, config, result)
    subject = f"{Path(config.dataset).name}, {_named(run)}"
    figure = training.patch_embeddings(patch_kernels(result.model), subject=subject)
    run.log_figure("plots/patch_embeddings.png", figure, key="patch_embeddings")
    for block in range(1, config.depth + 1):
        figure = training.depthwise_kernels(depthwise_kernels(result.model, block), block=block, subject=subject)
        plot = f"plots/depthwise_kernels/block_{block}.png"
        run.log_image("depthwise_kernels_by_block", figure, step=block, copies=[plot])
        if block == middle_block(config):
            run.log_figure("plots/depthwise_kernels.png", figure, key="depthwise_kernels")
    for epoch, kernels in (snapshots or {}).items():
        figure = training.depthwise_kernels(kernels, block=middle_block(config), subject=subject)
        run.log_image("depthwise_kernels_by_epoch", figure, step=epoch)
    if snapshots:
        figure = training.filters_over_epochs(snapshots, block=middle_block(config), subject=subject)
        run.log_figure("plots/filters_over_epochs.png", figure)


def log_history(run: TrackedRun, config: TrainingConfig, result: TrainingResult) -> None:
    """Log the metrics of all epochs of a training, as a table and as curves."""
    history = pd.DataFrame(result.history)
    history.insert(0, "epoch", np.arange(1, len(history) + 1))
    run.log_table("history.csv", history)
    subject = f"{Path(config.dataset).name}, {_named(run)}"
    figure = training.curves(result.history, best_epoch=result.best_epoch, monitor=config.monitor, subject=subject)
    run.log_figure("plots/curves.png", figure, key="curves")


def _named(run: TrackedRun) -> str:
    """Return what the title of a figure calls a run."""
    return f"run {run.name or run.id[:8]}"


def middle_block(config: TrainingConfig) -> int:
    """Return the number of the block whose kernels stand for all, counted from 1."""
    return (config.depth + 1) // 2


def log_trained_model(run: TrackedRun, model: keras.Model, config: TrainingConfig, dataset: Dataset) -> None:
    """Log the model in the form in which it is served."""
    stock_model = serving_model(model, config, dataset)
    example = _examples(dataset, 1).astype(np.float32)
    save = partial(save_keras, model=stock_model, classes=dataset.classes, resize=config.resize)
    run.log_model(partial(save, example=example))


def _examples(dataset: Dataset, most: int) -> npt.NDArray[np.uint8]:
    """Return the first images (n, height, width, channels) for validation, or for training if there are none."""
    split = dataset.validation if len(dataset.validation) else dataset.train
    return split.take(np.arange(min(most, len(split))))[0]


def register_model(
    run: TrackedRun,
    model: keras.Model,
    config: TrainingConfig,
    dataset: Dataset,
    results: Mapping[str, float],
) -> float:
    """Have the model registered under `register_as` once the run has finished.

    Args:
        run: The run that trained the model.
        model: The trained model.
        config: The run's settings.
        dataset: The run's data.
        results: Metrics, of which `VERSION_METRICS` and what the run monitors become tags of the version.

    Returns:
        The latency of one prediction in milliseconds, which becomes a tag too.
    """
    assert config.register_as
    stock_model = serving_model(model, config, dataset)
    latency_ms = time_prediction(stock_model)
    tags = {Tag.DATA: dataset.name, Tag.DATA_FINGERPRINT: dataset.fingerprint}
    values = {**results, "latency_ms": latency_ms}
    names = dict.fromkeys((config.monitor.replace("val_", "test_"), *VERSION_METRICS))
    tags |= {name: f"{values[name]:.6g}" for name in names if name in values}
    save = partial(save_pyfunc, model=stock_model, classes=dataset.classes, resize=config.resize)
    run.register_model(
        config.register_as,
        partial(save, images=_examples(dataset, COMPARED_IMAGES)),
        classes=dataset.classes,
        tags=tags,
    )
    return latency_ms


def serving_model(model: keras.Model, config: TrainingConfig, dataset: Dataset) -> keras.Model:
    """Return a model with the same weights in Keras' own layers and float32, however it was trained.

    An ensemble is of such models already.
    """
    if ensemble_members(model):
        return model
    stock_model = build_stock_model(config.model, dataset.image_shape, len(dataset.classes))
    stock_model.set_weights(model.get_weights())
    return stock_model


def evaluate_on_test_set(
    run: TrackedRun, model: keras.Model, config: TrainingConfig, dataset: Dataset
) -> dict[str, float]:
    """Predict the test images once, count that as an access to the test set, and log what is right and wrong.

    Returns:
        test_loss, test_accuracy, test_balanced_accuracy and test_macro_f1; with `test_time_views` also
        test_accuracy_views, for which the probabilities of each image's views are averaged.
    """
    run.set_tags(access_tags({}, by=run.id, run_id=run.id, tested=False))
    batches = evaluation_batches(config, dataset, dataset.test)
    probabilities = model.predict(batches, verbose=0)
    labels = dataset.test.labels[dataset.test.rows]
    _log_predictions(run, dataset, probabilities, labels)
    counts = metrics.ClassCounts.of_confusion(metrics.confusion_matrix(probabilities, labels))
    results = {
        "test_loss": metrics.cross_entropy(probabilities, labels),
        "test_accuracy": metrics.accuracy(probabilities, labels),
        "test_balanced_accuracy": float(metrics.balanced_accuracy(counts)),
        "test_macro_f1": float(metrics.macro_f1(counts)),
    }
    if views := VIEWS[config.test_time_views]:
        others = [model.predict(_viewed(batches, view), verbose=0) for view in views]
        averaged = np.mean([probabilities, *others], axis=0)
        results["test_accuracy_views"] = metrics.accuracy(averaged, labels)
    return results


def _viewed(batches: tf.data.Dataset, view: View) -> tf.data.Dataset:
    return batches.map(lambda images, targets: (view(images), targets))


def log_validation_predictions(run: TrackedRun, model: keras.Model, config: TrainingConfig, dataset: Dataset) -> None:
    """Predict the validation images once more, with the weights that the model ended with, and log the tables."""
    probabilities = model.predict(evaluation_batches(config, dataset, dataset.validation), verbose=0)
    _log_validation_tables(run, dataset.validation, dataset.classes, probabilities)


def _log_validation_tables(
    run: TrackedRun, split: Split, classes: Sequence[str], probabilities: npt.NDArray
) -> npt.NDArray[np.int64]:
    """Log a row for each image and for each class of validation, and return the confusion matrix."""
    _log_table_of_predictions(run, "validation_predictions.csv", split, classes, probabilities)
    counts = metrics.confusion_matrix(probabilities, split.labels[split.rows])
    run.log_table("validation_per_class.csv", metrics.per_class_table(counts, classes=classes))
    return counts


def log_out_of_fold_predictions(run: TrackedRun, dataset: Dataset, probabilities: npt.NDArray) -> str:
    """Log the predictions of all images that folds validate, and those of them that are probably mislabeled.

    Args:
        run: The run of all folds.
        dataset: Its data.
        probabilities: (images, classes), each image's by the network that was not trained on it.

    Returns:
        A line on the latter.
    """
    split, classes = dataset.out_of_fold, dataset.classes
    labels, files = split.labels[split.rows], split.file_names()
    counts = _log_validation_tables(run, split, classes, probabilities)
    subject = f"{dataset.name}, {_named(run)}"
    figure = training.confusion_matrix(counts, classes=classes, subject=f"out of fold, {subject}")
    run.log_figure("plots/confusion_matrix_out_of_fold.png", figure)
    errors = find_label_errors(probabilities, labels)
    digests = split.image_digests[split.rows]
    table = label_errors_table(errors, probabilities, images=digests, files=files, classes=classes)
    run.log_table("probably_mislabeled.csv", table)
    shown = table.head(MISLABELED_IMAGES)
    figure = mislabeled_images(
        split.take(errors.positions[:MISLABELED_IMAGES])[0],
        given=list(shown["class"]),
        suggested=list(shown["suggested_class"]),
        probabilities=list(shown["probability_of_suggested_class"]),
        found=len(table),
        of=len(labels),
        files=list(shown["file"]),
        subject=subject,
    )
    run.log_figure("plots/probably_mislabeled.png", figure)
    where = ": see probably_mislabeled.csv and its plot" if len(table) else ""
    right = percent(metrics.accuracy(probabilities, labels))
    of_all = f"{len(table):,} of {count(len(labels), 'image')}"
    return f"labels   {of_all} are probably mislabeled, by networks that are right about {right}{where}"


def _log_table_of_predictions(
    run: TrackedRun, path: str, split: Split, classes: Sequence[str], probabilities: npt.NDArray
) -> None:
    """Log a row for each image of a split, of which MLflow's evaluation view shows some."""
    table = metrics.predictions_table(
        probabilities,
        split.labels[split.rows],
        images=split.image_digests[split.rows],
        files=split.file_names(),
        classes=classes,
    )
    run.log_table(path, table, view=metrics.predictions_view(table))


def _log_predictions(run: TrackedRun, dataset: Dataset, probabilities: npt.NDArray, labels: npt.NDArray) -> None:
    """Log tables and figures of the predicted test images.

    Args:
        run: The run that predicted them.
        dataset: The run's data.
        probabilities: (images, classes).
        labels: (images,).
    """
    counts = metrics.confusion_matrix(probabilities, labels)
    per_class = metrics.per_class_table(counts, classes=dataset.classes)
    run.log_table("per_class.csv", per_class, view=metrics.per_class_view(per_class))
    _log_table_of_predictions(run, "test_predictions.csv", dataset.test, dataset.classes, probabilities)
    subject = f"{dataset.name}, test split, {_named(run)}"
    figure = training.confusion_matrix(counts, classes=dataset.classes, subject=subject)
    run.log_figure("plots/confusion_matrix.png", figure, key="confusion_matrix")
    errors = metrics.most_confident_errors(probabilities, labels, most=MOST_CONFIDENT_ERRORS)
    names = np.array(dataset.classes, dtype=object)
    figure = training.mistakes(
        dataset.test.take(errors.positions)[0],
        true=list(names[errors.true]),
        predicted=list(names[errors.predicted]),
        confidence=list(errors.confidence),
        wrong=int(counts.sum() - np.trace(counts)),
        of=len(labels),
        files=dataset.test.file_names(errors.positions),
        subject=subject,
    )
    run.log_figure("plots/mistakes.png", figure, key="mistakes")


def evaluate_winner(run: TrackedRun, config: TrainingConfig, dataset: Dataset, weights: Path) -> dict[str, float]:
    """Log a search's winning model and its results on the test set.

    Args:
        run: The run of the winner's final training.
        config: Its settings, resolved.
        dataset: Its data.
        weights: File in which the final training left the weights, those of all folds one after another.

    Returns:
        The results that were logged.
    """
    keras.config.set_dtype_policy(config.precision)
    model = build_model(config, dataset.image_shape, len(dataset.classes))
    if config.folds:
        folds, of_all, length = CrossValidation(config, dataset), read_weights(weights), len(model.weights)
        for start in range(0, len(of_all), length):
            model.set_weights(of_all[start : start + length])
            folds.add(model, {})
        log_out_of_fold_predictions(run, dataset, folds.probabilities)
        model = folds.model()
    else:
        model.set_weights(read_weights(weights))
    log_trained_model(run, model, config, dataset)
    results = evaluate_on_test_set(run, model, config, dataset)
    if not config.folds and not config.refit:
        log_validation_predictions(run, model, config, dataset)
    if config.register_as:
        results["latency_ms"] = register_model(run, model, config, dataset, results)
    run.log_results(results)
    return results
