"""Training on training images, choosing on validation images; the test images have no part in it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.config.training import TrainingConfig
from pipeline.data import batches
from pipeline.data.augmentation import build_augmentation
from pipeline.data.dataset import Dataset
from pipeline.model.conv_mixer import conv_mixer
from pipeline.model.initializers import initial_kernels
from pipeline.runtime.errors import Diverged, UsageError
from pipeline.training.callbacks import EMAWeights
from pipeline.training.checkpoint import TrainingState
from pipeline.training.optimizers import build_optimizer
from pipeline.training.schedules import LearningRateSchedule

EVALUATION_BATCH = 500  # images, at the most: more are no faster
EVALUATION_TIMES = 4  # as many images as in training fit where no gradients are kept
BATCH_NORM_BATCHES = 20  # 2,560 images at batch 128, and less than 2 % of an epoch of CIFAR-10

Report = Callable[[int, dict[str, float]], None]
Step = Callable[[], None]
Save = Callable[[Callable[[], TrainingState]], None]
Watch = Callable[[int, keras.Model], None]

TIMINGS = ("epoch_seconds", "images_per_second", "seconds")  # metrics that no seed makes the same again


@dataclass(frozen=True)
class Fitted:
    """A trained model with the weights of its best epoch, and how it came there."""

    model: keras.Model
    history: dict[str, list[float]]  # a value an epoch
    best_epoch: int  # counted from 1


def fit(
    config: TrainingConfig,
    data: Dataset,
    *,
    report: Report,
    progress_bar: bool,
    after_step: Step = lambda: None,
    save: Save = lambda state: None,
    watch: Watch = lambda epoch, model: None,
    start: TrainingState | None = None,
    strategy: tf.distribute.Strategy | None = None,
) -> Fitted:
    """Train a ConvMixer and return it with the weights of the epoch whose validation accuracy was best.

    Args:
        config: resolved, with nothing left at auto.
        report: called after each epoch, counted from 1, with its metrics.
        after_step: called after each training step; training ends with what it raises.
        save: called after each epoch, before report, with what gives the state to go on from.
        watch: called after each epoch, before save, with the model as training goes on with it.
        start: go on from this state of the same settings and data, as if training had never been interrupted: batches
            are a function of seed, epoch and position, and nothing else in training is random.
        strategy: how each batch is shared among devices; None: one device takes it all.

    Raises:
        Diverged: with the epoch and the step of the first loss that was NaN or infinite.
        UsageError: the state does not fit the model.
    """
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)
    strategy = strategy or tf.distribute.get_strategy()
    steps = steps_per_epoch(config, len(data.train), devices=strategy.num_replicas_in_sync)
    rate = LearningRateSchedule(
        config.schedule,
        peak=config.learning_rate,
        steps=config.epochs * steps,
        warmup_fraction=config.warmup_fraction,
    )
    with strategy.scope():
        model = build_model(config, data)
        initialize(model, config)
        compile_model(model, config, rate)
        if start:
            _restore(model, start)
    epochs = _EpochCallback(
        len(data.train),
        lambda epoch: float(rate(epoch * steps - 1)),
        report,
        after_step,
        save,
        watch,
        patience=config.early_stopping_epochs,
    )
    if start:
        epochs.restore(start)
    if len(epochs.history.get("loss", ())) < config.epochs and not epochs.out_of_patience():
        with strategy.scope():
            batches_left = training_batches(config, data, after=start.epoch if start else 0)
            callbacks = _callbacks(epochs, config, data)
        model.fit(
            batches_left,
            validation_data=evaluation_batches(config, data, data.validation),
            initial_epoch=start.epoch if start else 0,
            epochs=config.epochs,
            steps_per_epoch=steps,
            callbacks=callbacks,
            shuffle=False,  # the batches come shuffled
            verbose=1 if progress_bar else 0,
        )
    model.set_weights(epochs.best_weights)
    return Fitted(model, epochs.history, epochs.best_epoch())


def _callbacks(epochs: "_EpochCallback", config: TrainingConfig, data: Dataset) -> list[keras.callbacks.Callback]:
    """What watches training, in an order that matters: the best weights are averages, those to go on from are not."""
    averaging = []
    if config.ema_momentum is not None:
        averaging.append(EMAWeights(training_batches(config, data).take(BATCH_NORM_BATCHES)))
    return [epochs, *averaging, keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.hand_over())]


def build_model(config: TrainingConfig, data: Dataset) -> keras.Model:
    """The ConvMixer of these settings, under Keras' global dtype policy and TensorFlow's present strategy."""
    return conv_mixer(
        data.image_shape,
        len(data.classes),
        filters=config.filters,
        depth=config.depth,
        kernel_size=config.kernel_size,
        patch_size=config.patch_size,
        batch_norm_momentum=config.batch_norm_momentum,
        fast_layers=config.fast_layers is True,
        synchronized=tf.distribute.get_strategy().num_replicas_in_sync > 1,
    )


def build_stock_model(config: TrainingConfig, data: Dataset) -> keras.Model:
    """The network of these settings as it is served: of Keras' own layers, in float32."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        return build_model(config.model_copy(update={"fast_layers": False}), data)
    finally:
        keras.config.set_dtype_policy(policy)


def initialize(model: keras.Model, config: TrainingConfig) -> None:
    """Give the depthwise layers their initial kernels, unless those are Keras' own."""
    if config.depthwise_init == "glorot_uniform":
        return
    kernels = initial_kernels(
        config.depthwise_init,
        kernel_size=config.kernel_size,
        filters=config.filters,
        depth=config.depth,
        seed=config.seed,
    )
    for block, initial in enumerate(kernels, start=1):
        model.get_layer(f"block{block}_depthwise").kernel.assign(initial)


def compile_model(model: keras.Model, config: TrainingConfig, rate: LearningRateSchedule) -> None:
    """Cross-entropy, and the optimizer of these settings; float16 gets Keras' loss scaling."""
    steps = build_optimizer(
        config.optimizer,
        rate,
        weight_decay=config.weight_decay,
        epsilon=config.adam_epsilon,
        clip_norm=config.clip_norm,
        ema_momentum=config.ema_momentum,
        decay_norm_and_bias=config.decay_norm_and_bias,
    )
    model.compile(
        steps,
        loss=keras.losses.CategoricalCrossentropy(),
        metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
        jit_compile=config.jit_compile is True,
    )


def training_batches(config: TrainingConfig, data: Dataset, *, after: int = 0) -> tf.data.Dataset:
    """The changed and shuffled training images of all epochs but the first so many, for the present strategy."""
    return batches.training_batches(
        data.train,
        image_shape=data.image_shape,
        classes=len(data.classes),
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        augment=build_augmentation(
            flip=config.flip,
            translation=config.translation,
            randaugment_layers=config.randaugment_layers,
            randaugment_magnitude=config.randaugment_magnitude,
            color_jitter=config.color_jitter,
            random_erasing=config.random_erasing,
            cutout=config.cutout,
            mixup_alpha=config.mixup_alpha,
            cutmix_alpha=config.cutmix_alpha,
            mix_probability=config.mix_probability,
        ),
        label_smoothing=config.label_smoothing,
        initial_epoch=after,
        batch_multiple=_multiple(config, tf.distribute.get_strategy().num_replicas_in_sync),
    )


def steps_per_epoch(config: TrainingConfig, images: int, *, devices: int) -> int:
    """Training steps that so many images make."""
    return batches.count_steps(images, batch_size=config.batch_size, batch_multiple=_multiple(config, devices))


def _multiple(config: TrainingConfig, devices: int) -> int:
    """What the size of every training batch is a multiple of: devices take equal shares.

    XLA compiles a step for each size of batch, which took 35 s more on an H100: there all are of one size.
    """
    return config.batch_size if config.jit_compile is True else devices


def evaluation_batches(config: TrainingConfig, data: Dataset, split: batches.ImageSource) -> tf.data.Dataset:
    """The images of a split as they are."""
    at_once = min(EVALUATION_BATCH, EVALUATION_TIMES * config.batch_size)
    return batches.evaluation_batches(
        split, image_shape=data.image_shape, classes=len(data.classes), batch_size=at_once
    )


class _EpochCallback(keras.callbacks.Callback):
    """Times each epoch, stops at a loss that is not finite, keeps the best weights, reports, and knows when to stop."""

    def __init__(
        self,
        images: int,
        learning_rate: Callable[[int], float],
        report: Report,
        after_step: Step,
        save: Save,
        watch: Watch,
        *,
        patience: int | None,
    ) -> None:
        super().__init__()
        self.images = images
        self.learning_rate = learning_rate
        self.report = report
        self.after_step = after_step
        self.save = save
        self.watch = watch
        self.patience = patience
        self.history: dict[str, list[float]] = {}
        self.best_weights: list[npt.NDArray] = []

    def restore(self, state: TrainingState) -> None:
        """Go on from the history of a state."""
        self.history = {name: list(values) for name, values in state.history.items()}
        self.best_weights = state.best_weights

    def best_epoch(self) -> int:
        """The epoch with the best validation accuracy so far, the first of equals, counted from 1."""
        return int(np.argmax(self.history["val_accuracy"])) + 1

    def out_of_patience(self) -> bool:
        """Whether as many epochs as early stopping waits have not been better than the best."""
        accuracies = self.history.get("val_accuracy")
        if self.patience is None or not accuracies:
            return False
        return len(accuracies) - self.best_epoch() >= self.patience

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
        if self.best_epoch() == self.epoch:
            self.best_weights = self.model.get_weights()
        self.metrics = metrics
        if self.out_of_patience():
            self.model.stop_training = True

    def hand_over(self) -> None:
        """Show, save and report the epoch that has ended."""
        self.watch(self.epoch, self.model)
        self.save(self.state)
        self.report(self.epoch, self.metrics)

    def state(self) -> TrainingState:
        """What training goes on from after this epoch."""
        variables = [np.array(variable) for variable in _variables(self.model)]
        history = {name: list(values) for name, values in self.history.items()}
        return TrainingState(self.epoch, history, variables, self.best_weights)


def _variables(model: keras.Model) -> list[keras.Variable]:
    """All that training changes, but for the metrics, which every epoch resets: the model's, then the optimizer's."""
    metrics = {id(variable) for metric in model.metrics for variable in metric.variables}
    return [variable for variable in model.variables if id(variable) not in metrics] + model.optimizer.variables


def _restore(model: keras.Model, state: TrainingState) -> None:
    model.optimizer.build(model.trainable_variables)
    variables = _variables(model)
    here, there = ([(tuple(one.shape), str(one.dtype)) for one in some] for some in (variables, state.variables))
    weights = [tuple(weight.shape) for weight in model.weights]
    if here != there or weights != [weight.shape for weight in state.best_weights]:
        raise UsageError(
            f"a checkpoint must fit the model: {len(here)} variables here, got {len(there)} "
            "or others; resume with the version of the code that wrote it"
        )
    for variable, value in zip(variables, state.variables, strict=True):
        variable.assign(value)


_CURE = "try a lower learning_rate, a longer warmup_fraction or a clip_norm"
