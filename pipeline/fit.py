"""Training on training images, choosing on validation images; the test images have no part in it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pipeline import batches
from pipeline.augment import augmentation
from pipeline.config import Config
from pipeline.data import Data
from pipeline.errors import Diverged
from pipeline.model import conv_mixer
from pipeline.schedule import LearningRate

EVALUATION_BATCH = 500  # no gradients are kept, so memory allows more than in training

Report = Callable[[int, dict[str, float]], None]
Step = Callable[[], None]


@dataclass(frozen=True)
class Fitted:
    """A trained model with the weights of its best epoch, and how it came there."""

    model: keras.Model
    history: dict[str, list[float]]  # a value an epoch
    best_epoch: int  # counted from 1


def fit(
    config: Config,
    data: Data,
    *,
    checkpoints: Path,
    report: Report,
    progress_bar: bool,
    after_step: Step = lambda: None,
) -> Fitted:
    """Train a ConvMixer and return it with the weights of the epoch whose validation accuracy was best.

    Args:
        config: resolved, with nothing left at auto.
        checkpoints: an existing folder of the run's own, for the best weights so far.
        report: called after each epoch, counted from 1, with its metrics.
        after_step: called after each training step; training ends with what it raises.

    Raises:
        Diverged: with the epoch and the step of the first loss that was NaN or infinite.
    """
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)
    model = build(config, data)
    steps = math.ceil(len(data.train) / config.batch_size)
    rate = LearningRate(
        config.schedule,
        peak=config.learning_rate,
        steps=config.epochs * steps,
        warmup_fraction=config.warmup_fraction,
    )
    compile_model(model, config, rate)
    best = str(checkpoints / "best.weights.h5")
    epochs = _Epochs(len(data.train), lambda epoch: float(rate(epoch * steps - 1)), report, after_step)
    monitor = {"monitor": "val_accuracy", "mode": "max"}
    callbacks = [keras.callbacks.ModelCheckpoint(best, save_best_only=True, save_weights_only=True, **monitor), epochs]
    if config.early_stopping_epochs is not None:
        callbacks.append(keras.callbacks.EarlyStopping(patience=config.early_stopping_epochs, **monitor))
    model.fit(
        training_batches(config, data),
        validation_data=evaluation_batches(data, data.validation),
        epochs=config.epochs,
        steps_per_epoch=steps,
        callbacks=callbacks,
        shuffle=False,  # the batches come shuffled
        verbose=1 if progress_bar else 0,
    )
    model.load_weights(best)
    return Fitted(model, epochs.history, best_epoch=int(np.argmax(epochs.history["val_accuracy"])) + 1)


def build(config: Config, data: Data) -> keras.Model:
    """The ConvMixer of these settings, under Keras' global dtype policy."""
    return conv_mixer(
        data.image_shape,
        len(data.classes),
        filters=config.filters,
        depth=config.depth,
        kernel_size=config.kernel_size,
        patch_size=config.patch_size,
        batch_norm_momentum=config.batch_norm_momentum,
        fast_layers=config.fast_layers is True,
    )


def compile_model(model: keras.Model, config: Config, rate: LearningRate) -> None:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) on cross-entropy; float16 gets Keras' loss scaling."""
    optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, global_clipnorm=config.clip_norm)
    if not config.decay_norm_and_bias:
        optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    model.compile(
        optimizer,
        loss=keras.losses.CategoricalCrossentropy(),
        metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
        jit_compile=config.jit_compile is True,
    )


def training_batches(config: Config, data: Data) -> tf.data.Dataset:
    """The changed and shuffled training images of all epochs."""
    return batches.training_batches(
        data.train,
        image_shape=data.image_shape,
        classes=len(data.classes),
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        change=augmentation(flip=config.flip, translation=config.translation),
        label_smoothing=config.label_smoothing,
    )


def evaluation_batches(data: Data, split: batches.Images) -> tf.data.Dataset:
    """The images of a split as they are."""
    return batches.evaluation_batches(
        split, image_shape=data.image_shape, classes=len(data.classes), batch_size=EVALUATION_BATCH
    )


class _Epochs(keras.callbacks.Callback):
    """Times each epoch, stops at a loss that is not finite, and reports."""

    def __init__(self, images: int, learning_rate: Callable[[int], float], report: Report, after_step: Step) -> None:
        super().__init__()
        self.images = images
        self.learning_rate = learning_rate
        self.report = report
        self.after_step = after_step
        self.history: dict[str, list[float]] = {}

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.epoch = epoch + 1
        self.began = self.trained = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        if not math.isfinite(logs["loss"]):
            raise Diverged(f"loss became {float(logs['loss'])} at epoch {self.epoch}, step {batch + 1}; {_CURE}")
        self.after_step()

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        self.trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if not math.isfinite(logs["val_loss"]):
            raise Diverged(f"val_loss became {logs['val_loss']} after epoch {self.epoch}; {_CURE}")
        metrics = {name: float(logs[name]) for name in ("loss", "accuracy", "val_loss", "val_accuracy")}
        metrics["learning_rate"] = self.learning_rate(self.epoch)
        metrics["epoch_seconds"] = time.perf_counter() - self.began
        metrics["images_per_second"] = self.images / (self.trained - self.began)
        for name, value in metrics.items():
            self.history.setdefault(name, []).append(value)
        self.report(self.epoch, metrics)


_CURE = "try a lower learning_rate, a longer warmup_fraction or a clip_norm"
