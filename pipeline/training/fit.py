"""The training loop: fit a ConvMixer to the training images, select its weights on the validation images."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import keras
import tensorflow as tf

from pipeline.config.image_stages import image_stages, is_clean
from pipeline.config.training import TrainingConfig
from pipeline.data import batches
from pipeline.data.augmentation.registry import build_augmentation
from pipeline.data.dataset import Dataset
from pipeline.model.conv_mixer import build_model, freeze, position
from pipeline.runtime.errors import UsageError
from pipeline.training.callbacks import (
    BestWeights,
    EarlyStopping,
    EMAWeights,
    EpochMetrics,
    ProgressBar,
    TerminateOnNonFinite,
    TrainingCallback,
    order_callbacks,
)
from pipeline.training.checkpoint import TrainingState
from pipeline.training.class_accuracy import ClassAccuracy
from pipeline.training.initial_weights import InitialWeights
from pipeline.training.optimizers import build_optimizer
from pipeline.training.progress import TrainingProgress, restore_variables
from pipeline.training.schedules import LearningRateSchedule
from pipeline.training.teacher import TargetCrossentropy, Teacher
from pipeline.training.train_function import StepGroups, make_train_function

# Images in an evaluation batch: at most 500, as larger batches are no faster, and at most 4 times the training batch,
# which fits into memory because no gradients are kept.
EVALUATION_BATCH = 500
EVALUATION_TIMES = 4
# Batches from which EMAWeights renews batch norm: 2,560 images at batch 128, less than 2 % of an epoch of CIFAR-10.
BATCH_NORM_BATCHES = 20
# Share of the training images that an epoch may leave out without a warning.
LEFT_OUT = 0.05

# metrics that differ between runs with the same seed
TIMINGS = ("epoch_seconds", "images_per_second", "seconds")


@dataclass(frozen=True)
class TrainingResult:
    """A trained model with the weights of its best epoch, and its history."""

    model: keras.Model
    history: dict[str, list[float]]  # one value per metric and epoch
    best_epoch: int  # counted from 1


def fit(
    config: TrainingConfig,
    dataset: Dataset,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    *,
    start: TrainingState | None = None,
    initial_weights: InitialWeights | None = None,
    teacher: Teacher | None = None,
    strategy: tf.distribute.Strategy | None = None,
    progress_bar: bool = False,
) -> TrainingResult:
    """Train a ConvMixer on the training images and return it with the weights of its best epoch.

    The best epoch is the one with the best value of the setting `monitor`, and the last one where no images are left
    for validation, with `refit`. The test images have no part in training.

    Args:
        config: Resolved, with no setting left at auto.
        dataset: Its splits `train` and `validation` are used; the latter may have no images.
        callbacks: What else watches or saves the training, in any order; see `order_callbacks`.
        start: State to resume from, of the same settings and data. The result is as if training had never been
            interrupted: batches are a function of seed, epoch and position, and nothing else in training is random.
        initial_weights: What a new training starts from; None starts from random weights. A resumed one has its own.
        teacher: The model of `config.teacher`, also for a resumed training; None where that names none.
        strategy: How each batch is shared among devices; None trains on one device.
        progress_bar: Show Keras' progress bar.

    Raises:
        Diverged: The loss became NaN or infinite; the message names the epoch and the step.
        UsageError: The state does not fit the model, or a model that the settings name is not given.
    """
    if not start:
        require_initial_weights(config, dataset, initial_weights)
    require_teacher(config, dataset, teacher)
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)
    strategy = strategy or tf.distribute.get_strategy()
    steps = steps_per_epoch(config, len(dataset.train), devices=strategy.num_replicas_in_sync)
    groups = StepGroups(steps, size=1 if config.steps_per_execution == "auto" else config.steps_per_execution)
    progress = TrainingProgress(start, monitor=config.monitor)
    stages = training_stages(config)
    early_stopping = EarlyStopping(config.early_stopping_epochs, head_epochs=stages[-1].first_epoch)
    with strategy.scope():
        model = build_model(config, input_shape(config, dataset), len(dataset.classes))
        if initial_weights and not start:
            initial_weights.copy_to(model, dataset.classes)
        teach = [teacher.build(config, dataset)] if teacher and config.teacher_weight else []
        own = [
            TerminateOnNonFinite(groups),
            EpochMetrics(
                images=images_per_epoch(config, len(dataset.train), devices=strategy.num_replicas_in_sync),
                classes=dataset.classes,
                learning_rate=partial(last_learning_rate, config, steps),
            ),
            BestWeights(),
            early_stopping,
        ]
        if config.ema_momentum is not None:
            first = {clean: first_batches(config, dataset, clean=clean) for clean in {False, config.clean_epochs > 0}}
            own.append(EMAWeights(lambda epoch: first[is_clean(config, epoch)], groups=groups.count))
        if progress_bar:
            own.append(ProgressBar(groups))
    ordered = order_callbacks([*own, *callbacks])
    for callback in ordered:
        if isinstance(callback, TrainingCallback):
            callback.progress = progress
    validation = evaluation_batches(config, dataset, dataset.validation) if len(dataset.validation) else None
    copy = batches.DeviceImages.copy_of(dataset.train) if config.data_on == "device" else None
    on_xla = copy is not None and config.jit_compile is True
    for stage in stages:
        # A resumed training may have been interrupted after its last epoch.
        if progress.epoch >= stage.last_epoch or early_stopping.is_out_of_patience():
            continue
        with strategy.scope():
            freeze(model, depth=config.depth, before=stage.first_trained)
            compile_model(model, config, stage.learning_rate(config, steps))
            if start and start.epoch >= stage.first_epoch:
                restore_variables(model, start, with_optimizer=start.epoch > stage.first_epoch)
        traced_size = None
        for last_epoch, size, clean in image_stages(config, dataset.image_shape):
            last_epoch = min(last_epoch, stage.last_epoch)
            if progress.epoch >= last_epoch or early_stopping.is_out_of_patience():
                continue
            with strategy.scope():
                remaining = make_training_batches(
                    config, dataset, initial_epoch=progress.epoch, size=size, clean=clean, for_xla=on_xla
                )
            make = [partial(remaining.on_device, copy)] if copy else []
            # a step is traced for one size of images, and with what makes them on a device
            if copy or size != traced_size:
                model.train_function = make_train_function(model, groups, [*make, *teach])
            traced_size = size
            model.fit(
                remaining.plans() if copy else remaining.on_host(),
                validation_data=validation,
                initial_epoch=progress.epoch,
                epochs=last_epoch,
                steps_per_epoch=groups.count,
                callbacks=ordered,
                shuffle=False,  # the batches are shuffled already
                verbose=1 if progress_bar else 0,
            )
    # which holds the images on the device
    model.train_function = None
    if config.progressive_resize:
        model = build_model(config, dataset.image_shape, len(dataset.classes))
    model.set_weights(progress.best_weights)
    return TrainingResult(model, progress.history, progress.best_epoch)


def input_shape(config: TrainingConfig, dataset: Dataset) -> tuple[int | None, int | None, int]:
    """Return the shape (height, width, channels) of the images to train on; None for a side that changes."""
    height, width, channels = dataset.image_shape
    return (None, None, channels) if config.progressive_resize else (height, width, channels)


class TrainingStage(NamedTuple):
    """Successive epochs in which the same layers are trained, by an optimizer and a schedule of their own."""

    first_epoch: int  # number of epochs before it
    last_epoch: int  # number of epochs after it
    first_trained: int  # position of the first layer that is trained, see `freeze`

    def learning_rate(self, config: TrainingConfig, steps_per_epoch: int) -> LearningRateSchedule:
        """Return the schedule, over this stage's steps."""
        return LearningRateSchedule(
            config.schedule,
            peak=config.learning_rate,
            steps=(self.last_epoch - self.first_epoch) * steps_per_epoch,
            warmup_fraction=config.warmup_fraction,
        )


def training_stages(config: TrainingConfig) -> list[TrainingStage]:
    """Return the stages of a training: one, and before it one of the last layer alone where `head_epochs` is set."""
    blocks = config.freeze_blocks
    head = TrainingStage(0, config.head_epochs, config.depth + 1)
    rest = TrainingStage(config.head_epochs, config.epochs, blocks + 1 if blocks else 0)
    return [stage for stage in (head, rest) if stage.last_epoch > stage.first_epoch]


def last_learning_rate(config: TrainingConfig, steps_per_epoch: int, epoch: int) -> float:
    """Return the learning rate of the last step of an epoch, counted from 0; that of the last layer."""
    stage = next(stage for stage in training_stages(config) if epoch < stage.last_epoch)
    schedule = stage.learning_rate(config, steps_per_epoch)
    return float(schedule((epoch + 1 - stage.first_epoch) * steps_per_epoch - 1))


def compile_model(model: keras.Model, config: TrainingConfig, learning_rate: LearningRateSchedule) -> None:
    """Compile a model with cross-entropy and the optimizer of the settings; float16 gets Keras' loss scaling."""
    model.compile(
        build_optimizer(
            config.optimization,
            learning_rate,
            ema_momentum=config.ema_momentum,
            gradient_accumulation=config.gradient_accumulation,
            share_of=partial(learning_rate_share, config) if config.layer_decay < 1 else None,
        ),
        loss=TargetCrossentropy(),
        metrics=[ClassAccuracy(model.output_shape[-1])],
        jit_compile=config.jit_compile is True,
    )
    # Else the first training step creates the optimizer's variables, and TensorFlow traces the step a second time
    # without them: 2.4 of the 5.6 s of CPU time that two epochs of the recipe `smoke` take.
    model.optimizer.build(model.trainable_variables)


def learning_rate_share(config: TrainingConfig, path: str) -> float:
    """Return the share of the learning rate with which the variable of a path is trained: the last layer's is 1."""
    return config.layer_decay ** (config.depth + 1 - position(path, config.depth))


def require_initial_weights(config: TrainingConfig, dataset: Dataset, initial_weights: InitialWeights | None) -> None:
    """Raise UsageError if a new training is not given the weights that its settings name, or others than fit."""
    if config.weights_from and initial_weights is None:
        raise UsageError(
            f"initial_weights must be given with weights_from={config.weights_from}: InitialWeights.load(weights_from)"
        )
    if initial_weights:
        initial_weights.check(config, dataset.image_shape)


def require_teacher(config: TrainingConfig, dataset: Dataset, teacher: Teacher | None) -> None:
    """Raise UsageError if a training is not given the teacher that its settings name, or one that does not suit."""
    if config.teacher and config.teacher_weight and teacher is None:
        raise UsageError(f"the teacher must be given with teacher={config.teacher}: Teacher.load(teacher)")
    if teacher and config.teacher is None:
        raise UsageError(f"teacher must be one that the settings name, got {teacher.origin}: teacher.complete(config)")
    if teacher:
        teacher.check(config, dataset)


def first_batches(config: TrainingConfig, dataset: Dataset, *, clean: bool) -> tf.data.Dataset:
    """Return the first training batches, as `EMAWeights` needs them."""
    return make_training_batches(config, dataset, clean=clean).on_host().take(BATCH_NORM_BATCHES)


def make_training_batches(
    config: TrainingConfig,
    dataset: Dataset,
    *,
    initial_epoch: int = 0,
    size: tuple[int, int] | None = None,
    clean: bool = False,
    for_xla: bool = False,
) -> batches.TrainingBatches:
    """Return the training batches of all epochs from `initial_epoch`, which counts from 0, on.

    Their sizes suit TensorFlow's current distribution strategy. The images get the `size` (height, width), or keep
    their own. `clean` and `for_xla` (XLA is to compile what makes them): see `build_augmentation`.
    """
    labels = dataset.train.labels[dataset.train.rows]
    return batches.TrainingBatches(
        dataset.train,
        image_shape=dataset.image_shape,
        classes=len(dataset.classes),
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        augment=build_augmentation(config.augmentation, clean=clean, for_xla=for_xla),
        label_smoothing=config.label_smoothing,
        class_weights=batches.class_weights(config.class_weights, labels, len(dataset.classes)),
        balanced_labels=labels if config.sampling == "balanced" else None,
        initial_epoch=initial_epoch,
        alternating_flip=config.flip == "alternating",
        size=size,
        batch_multiple=_batch_multiple(config, tf.distribute.get_strategy().num_replicas_in_sync),
    )


def steps_per_epoch(config: TrainingConfig, images: int, *, devices: int) -> int:
    """Return the number of training steps in an epoch of `images` images."""
    return batches.count_steps(images, batch_size=config.batch_size, batch_multiple=_batch_multiple(config, devices))


def images_per_epoch(config: TrainingConfig, images: int, *, devices: int) -> int:
    """Return the number of images that an epoch trains on, of `images` images."""
    return batches.count_images(images, batch_size=config.batch_size, batch_multiple=_batch_multiple(config, devices))


def many_left_out(config: TrainingConfig, images: int, *, devices: int) -> str | None:
    """Return a warning if batches of one size leave out more than a share `LEFT_OUT` of the images, else None."""
    left_out = images - images_per_epoch(config, images, devices=devices)
    # without XLA these are fewer than there are devices, whatever the size
    if left_out <= LEFT_OUT * images or config.jit_compile is not True:
        return None
    fewer = max(size for size in range(1, config.batch_size) if images % size <= LEFT_OUT * images)
    return (
        f"each epoch leaves out {left_out:,} of {images:,} training images, drawn anew each time, as XLA takes batches "
        f"of one size: {left_out / images:.0%} with batch_size={config.batch_size}; "
        f"try {fewer}, which leaves out {images % fewer or 'none'}"
    )


def _batch_multiple(config: TrainingConfig, devices: int) -> int:
    """Return the number of which the size of every training batch is a multiple, so that devices take equal shares.

    XLA compiles a step for each size of batch, which took 35 s more on an H100: with XLA all batches have one size.
    """
    return config.batch_size if config.jit_compile is True else devices


def evaluation_batches(config: TrainingConfig, dataset: Dataset, split: batches.ImageSource) -> tf.data.Dataset:
    """Return batches of a split's images in their order, without augmentation."""
    return batches.evaluation_batches(
        split,
        image_shape=dataset.image_shape,
        classes=len(dataset.classes),
        batch_size=min(EVALUATION_BATCH, EVALUATION_TIMES * config.batch_size),
    )
