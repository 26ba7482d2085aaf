"""One run: train on accepted data, open the test set once, leave everything in MLflow, say what came of it."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from pipeline.config.training import TrainingConfig, slow_batch_norm, to_yaml
from pipeline.data.dataset import Dataset
from pipeline.evaluation import metrics as scoring
from pipeline.evaluation.figures import training
from pipeline.model.conv_mixer import (
    build_model,
    build_stock_model,
    count_parameters,
    depthwise_kernels,
    patch_kernels,
)
from pipeline.runtime import device as devices
from pipeline.runtime.errors import Diverged, UsageError
from pipeline.serving.packaging import save_keras, save_pyfunc
from pipeline.tracking.run import TrackedRun, next_steps, start_run
from pipeline.tracking.tags import Role, Tag, code_version_tags
from pipeline.tracking.test_set_access import access_tags
from pipeline.training.benchmark import time_inference
from pipeline.training.callbacks import CheckpointSaver, KernelSnapshots, ProgressReporter
from pipeline.training.checkpoint import TrainingState, read_weights
from pipeline.training.checkpoint_manager import CheckpointManager, checkpoint_folder, remove_finished
from pipeline.training.fit import (
    TIMINGS,
    TrainingResult,
    evaluation_batches,
    fit,
    steps_per_epoch,
)
from pipeline.training.resume import ResumePoint

MISTAKES = 25
TOLD_OF_VERSION = ("test_accuracy", "latency_ms", "parameters")  # figures
CONFIG_FILE = "config.yaml"


def run_training(recipe: str, config: TrainingConfig, data: Dataset, resumption: ResumePoint | None = None) -> None:
    """Train, test and log one run, or go on with one.

    Raises:
        Diverged: the loss became NaN or infinite; the run is closed as FAILED.
        Stopped: Ctrl-C, SIGTERM or SIGHUP; the run is closed as KILLED.
    """
    began = time.perf_counter()
    device = devices.select_device(config.devices)
    config = resolve_auto(config, data, device)
    start = resumption.checkpoint.state if resumption else None
    with (
        start_run(
            role=Role.RUN,
            resume=resumption.run_id if resumption else None,
            resume_name=resumption.name if resumption else "",
            system_metrics=True,
        ) as run,
        checkpoint_on_exit(run, CheckpointManager(run.id, config, fingerprint=data.fingerprint)) as checkpoints,
    ):
        remove_finished()
        name = _go_on(run, start) if start else _introduce(run, recipe, config, data, device)
        _announce(config, data, device)
        for line in [*run.notices, *([f"resume   {resumption}"] if resumption else [])]:
            print(line, flush=True)
        bar = sys.stdout.isatty()  # which says what the line of an epoch says

        def report(epoch: int, metrics: dict[str, float]) -> None:
            _warn_of_others(epoch, run.log_epoch(epoch, metrics))
            if not bar:
                print(_epoch_line(config.epochs, epoch, metrics), flush=True)

        middle = middle_block(config)
        snapshots = KernelSnapshots(
            checkpoint_folder(run.id), epochs=config.epochs, steps=config.filter_steps, block=middle
        )
        fitted = fit(
            config,
            data,
            [snapshots, CheckpointSaver(checkpoints.save), ProgressReporter(report)],
            start=start,
            strategy=device.strategy(),
            progress_bar=bar,
        )
        log_training(run, config, fitted)
        if kept := snapshots.load():
            run.log_figure("plots/filters_over_epochs.png", training.filters_over_epochs(kept, block=middle))
        log_trained_model(run, fitted.model, config, data)
        figures = evaluate_on_test_set(run, fitted.model, config, data) | {
            "best_epoch": fitted.best_epoch,
            "best_val_accuracy": fitted.history["val_accuracy"][fitted.best_epoch - 1],
            "parameters": fitted.model.count_params(),
        }
        if config.register_as:
            figures |= register_model(run, fitted.model, config, data, figures)
        before = sum(start.history["epoch_seconds"]) if start else 0  # of a run that was interrupted
        figures["seconds"] = time.perf_counter() - began + before
        run.log_results(figures)
        said = _result(fitted, figures, config, data)
        run.set_description(said)
    checkpoints.clear()
    print("", said, f"run      {name}  {run.id}", *next_steps(run), sep="\n", flush=True)


def _introduce(run: TrackedRun, recipe: str, config: TrainingConfig, data: Dataset, device: devices.Device) -> str:
    """Log what the run is before it begins; returns its name."""
    of = data.name if Path(recipe).name == CONFIG_FILE else Path(recipe).stem
    name = run.set_name(f"{of} {config.filters}/{config.depth} k{config.kernel_size} p{config.patch_size}")
    run.log_params({"recipe": recipe} | {setting: config.text(setting) for setting in TrainingConfig.model_fields})
    run.log_text(CONFIG_FILE, to_yaml(config))
    _log_origin(run, config, data, device)
    return name


def _go_on(run: TrackedRun, start: TrainingState) -> str:
    """Log what an interrupted run had finished and could not log any more; returns its name."""
    name = run.load_logged_state()
    for epoch in range(1, start.epoch + 1):
        run.log_epoch(epoch, {metric: values[epoch - 1] for metric, values in start.history.items()})
    return name


def _warn_of_others(epoch: int, names: set[str]) -> None:
    """Warn of metrics that an interrupted run had logged of this epoch with other values."""
    if others := sorted(names - set(TIMINGS)):
        print(
            f"warning: epoch {epoch} had been logged with another {', '.join(others)}, which stays: this device "
            "does not repeat to the last digit what the interrupted run did",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def checkpoint_on_exit(run: TrackedRun, checkpoints: CheckpointManager) -> Iterator[CheckpointManager]:
    """What is left for whoever goes on, if this process does not come to the end."""
    try:
        yield checkpoints
    except Diverged:  # as it would again
        checkpoints.clear()
        raise
    except BaseException:
        if not run.is_superseded:
            checkpoints.upload_final()
            if checkpoints.newest():
                print(f"resume   mlflow run . -P resume={run.id}", file=sys.stderr, flush=True)
        raise


def resolve_auto(config: TrainingConfig, data: Dataset, device: devices.Device) -> TrainingConfig:
    """The settings with every `auto` decided and a path made absolute, so that they say what was done.

    Raises:
        UsageError: settings that these devices cannot have together.
    """
    if device.count > 1 and config.fast_layers is True:
        raise UsageError("fast_layers must be false or auto with devices=all, as they see one device's share: got true")
    if config.batch_size % device.count:
        raise UsageError(
            f"batch_size must be a multiple of the {device.count} devices that share it: got {config.batch_size}"
        )
    changes: dict[str, object] = {}
    if config.precision == "auto":
        changes["precision"] = devices.precision_for(device)
    if config.jit_compile == "auto":
        changes["jit_compile"] = devices.jit_compile_for(device)
    if config.fast_layers == "auto":
        changes["fast_layers"] = devices.fast_layers_for(device)
    if os.path.isabs(data.source):
        changes["dataset"] = data.source
    return config.model_copy(update=changes)


def evaluate_winner(run: TrackedRun, config: TrainingConfig, data: Dataset, weights: Path) -> dict[str, float]:
    """Log the model of a search's winner, whose training left its weights in a file, and open the test set for it."""
    keras.config.set_dtype_policy(config.precision)
    model = build_model(config, data.image_shape, len(data.classes))
    model.set_weights(read_weights(weights))
    log_trained_model(run, model, config, data)
    figures = evaluate_on_test_set(run, model, config, data)
    if config.register_as:
        figures |= register_model(run, model, config, data, figures)
    run.log_results(figures)
    return figures


def log_training(run: TrackedRun, config: TrainingConfig, fitted: TrainingResult) -> None:
    """The history, and what the filters have become."""
    history = pd.DataFrame(fitted.history)
    history.insert(0, "epoch", np.arange(1, len(history) + 1))
    run.log_table("history.csv", history)
    run.log_figure("plots/curves.png", training.curves(fitted.history, best_epoch=fitted.best_epoch))
    run.log_figure("plots/patch_embeddings.png", training.patch_embeddings(patch_kernels(fitted.model)))
    for block in range(1, config.depth + 1):
        figure = training.depthwise_kernels(depthwise_kernels(fitted.model, block), block=block)
        run.log_figure(f"plots/depthwise_kernels/block_{block}.png", figure)
        if block == middle_block(config):
            run.log_figure("plots/depthwise_kernels.png", figure)


def middle_block(config: TrainingConfig) -> int:
    """The block whose kernels are looked at first, counted from 1."""
    return (config.depth + 1) // 2


def log_trained_model(run: TrackedRun, model: keras.Model, config: TrainingConfig, data: Dataset) -> None:
    """Log the model that is served."""
    example = data.validation.take(np.arange(1))[0].astype(np.float32)
    run.log_model(partial(save_keras, model=serving_model(model, config, data), example=example, classes=data.classes))


def register_model(
    run: TrackedRun, model: keras.Model, config: TrainingConfig, data: Dataset, figures: dict[str, float]
) -> dict[str, float]:
    """Have the model registered when the run has ended well; returns latency_ms, which its version tells too."""
    assert config.register_as
    measured = {"latency_ms": time_inference(config, data)}
    tags = {Tag.DATA: data.name, Tag.DATA_FINGERPRINT: data.fingerprint}
    tags |= {name: f"{value:.6g}" for name, value in (figures | measured).items() if name in TOLD_OF_VERSION}
    example = data.validation.take(np.arange(1))[0][0]
    plain = serving_model(model, config, data)
    save = partial(save_pyfunc, model=plain, example=example, classes=data.classes)
    run.register_model(config.register_as, save, classes=data.classes, tags=tags)
    return measured


def serving_model(model: keras.Model, config: TrainingConfig, data: Dataset) -> keras.Model:
    """The same weights in Keras' own layers and float32, whatever the layers and the precision of training."""
    plain = build_stock_model(config.model, data.image_shape, len(data.classes))
    plain.set_weights(model.get_weights())
    return plain


def evaluate_on_test_set(
    run: TrackedRun, model: keras.Model, config: TrainingConfig, data: Dataset
) -> dict[str, float]:
    """Predict the test images, once, and count that; log what is right and wrong; return test_loss and test_accuracy.

    `test_time_flip` adds test_accuracy_flip, of the mean of each image's probabilities and its mirror image's.
    """
    run.set_tags(access_tags({}, by=run.id, run_id=run.id, tested=False))
    test_batches = evaluation_batches(config, data, data.test)
    probabilities = model.predict(test_batches, verbose=0)
    labels = data.test.labels[data.test.rows]
    counts = scoring.confusion_matrix(probabilities, labels)
    worst = scoring.most_confident_errors(probabilities, labels, most=MISTAKES)
    run.log_table("per_class.csv", scoring.per_class_table(counts, classes=data.classes))
    digests = data.test.image_digests[data.test.rows]
    run.log_table("test_predictions.csv", scoring.predictions_table(probabilities, labels, images=digests))
    run.log_figure("plots/confusion_matrix.png", training.confusion_matrix(counts, classes=data.classes))
    names = np.array(data.classes, dtype=object)
    run.log_figure(
        "plots/mistakes.png",
        training.mistakes(
            data.test.take(worst.positions)[0],
            true=list(names[worst.true]),
            predicted=list(names[worst.predicted]),
            confidence=list(worst.confidence),
            wrong=int(counts.sum() - np.trace(counts)),
            of=len(labels),
        ),
    )
    figures = {
        "test_loss": scoring.cross_entropy(probabilities, labels),
        "test_accuracy": scoring.accuracy(probabilities, labels),
    }
    if config.test_time_flip:
        mirrored = model.predict(test_batches.map(lambda images, of: (images[:, :, ::-1], of)), verbose=0)
        figures["test_accuracy_flip"] = scoring.accuracy((probabilities + mirrored) / 2, labels)
    return figures


def _log_origin(run: TrackedRun, config: TrainingConfig, data: Dataset, device: devices.Device) -> None:
    """What the result depends on besides the settings: code, libraries, device and data."""
    run.set_tags(
        code_version_tags()
        | {
            Tag.ROLE: Role.RUN,
            Tag.DEVICE: str(device),
            Tag.PRECISION: config.precision,
            Tag.TENSORFLOW: tf.__version__,
            Tag.KERAS: keras.__version__,
            Tag.DATA: data.name,
            Tag.DATA_FINGERPRINT: data.fingerprint,
            Tag.DATA_DUPLICATES: str(data.duplicates),
        }
    )
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    for context, split in splits.items():
        run.log_dataset(
            name=f"{data.name} {context}",
            source=data.source,
            digest=split.digest,
            context=context,
            shape=data.image_shape,
        )


def _announce(config: TrainingConfig, data: Dataset, device: devices.Device) -> None:
    height, width, channels = data.image_shape
    print(
        f"data     {data.name}: {len(data.train):,} training, {len(data.validation):,} validation and "
        f"{len(data.test):,} test images of {height}x{width}x{channels}, {len(data.classes)} classes"
    )
    if data.duplicates:
        said = f"warning: {data.duplicates:,} images of one split stand, pixel for pixel, in another one too"
        print(said, file=sys.stderr, flush=True)
    print(
        f"model    ConvMixer-{config.filters}/{config.depth}, kernel {config.kernel_size}, patch {config.patch_size}: "
        f"{count_parameters(config.model, data.image_shape, len(data.classes)):,} parameters"
    )
    ways = [
        config.precision,
        *["fast layers"] * bool(config.fast_layers),
        *["compiled with XLA"] * bool(config.jit_compile),
    ]
    print(f"device   {', '.join([str(device), *ways])}", flush=True)
    steps = steps_per_epoch(config, len(data.train), devices=device.count)
    for warning in (devices.unused_gpu(device), slow_batch_norm(config, steps_per_epoch=steps)):
        if warning:
            print(f"warning: {warning}", file=sys.stderr, flush=True)


def _epoch_line(epochs: int, epoch: int, metrics: dict[str, float]) -> str:
    return (
        f"epoch {epoch:>{len(str(epochs))}}/{epochs}  loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.4f}  "
        f"val_loss {metrics['val_loss']:.4f}  val_accuracy {metrics['val_accuracy']:.4f}  "
        f"{metrics['images_per_second']:,.0f} images/s  {metrics['epoch_seconds']:.1f} s"
    )


def _result(fitted: TrainingResult, figures: dict[str, float], config: TrainingConfig, data: Dataset) -> str:
    return (
        f"test accuracy {figures['test_accuracy']:.2%} (loss {figures['test_loss']:.4f}, {len(data.test):,} images), "
        f"validation accuracy {figures['best_val_accuracy']:.2%} at epoch {fitted.best_epoch} of {config.epochs}; "
        f"{figures['parameters']:,} parameters, {figures['seconds']:.0f} s"
    )
