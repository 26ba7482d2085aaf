"""Keras callbacks of a training: what stops it, measures it, selects its weights, saves it and reports it."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.evaluation.metrics import balanced_accuracy, macro_f1, recalls
from pipeline.model.conv_mixer import depthwise_kernels
from pipeline.runtime.errors import Diverged
from pipeline.runtime.files import make_private
from pipeline.runtime.text import printable
from pipeline.training.checkpoint import TrainingState
from pipeline.training.class_accuracy import class_counts
from pipeline.training.progress import TrainingProgress
from pipeline.training.train_function import StepGroups

log = logging.getLogger(__name__)

# Of more classes each epoch logs no recalls: MLflow keeps a row for each value, and its pages a chart for each class.
RECALL_CLASSES = 20
REMEDY = "try a lower learning_rate, a longer warmup_fraction or a clip_norm"


class TrainingCallback(keras.callbacks.Callback):
    """Callback with access to the progress of the training.

    Attributes:
        progress: Set by `fit` before training begins.
    """

    progress: TrainingProgress


class TerminateOnNonFinite(TrainingCallback):
    """Raise `Diverged` at the first loss that is NaN or infinite, or weights where there are no validation images.

    The loss is the mean of the epoch so far, which stays NaN or infinite once it is.

    Args:
        groups: The steps between which Keras calls back, for the message.
    """

    def __init__(self, groups: StepGroups) -> None:
        super().__init__()
        self.groups = groups

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        if not math.isfinite(logs["loss"]):
            epoch, first, last = self.progress.epoch + 1, self.groups.first_step(batch), self.groups.last_step(batch)
            steps = f"step {first}" if first == last else f"between steps {first} and {last}"
            raise Diverged(f"loss became {float(logs['loss'])} at epoch {epoch}, {steps}; {REMEDY}")

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if not math.isfinite(logs.get("val_loss", 0)):
            raise Diverged(f"val_loss became {logs['val_loss']} after epoch {epoch + 1}; {REMEDY}")
        # without validation images nothing else shows what the epoch's last step has done
        if "val_loss" not in logs and not all(np.isfinite(weights).all() for weights in self.model.get_weights()):
            raise Diverged(f"weights became NaN or infinite after epoch {epoch + 1}; {REMEDY}")


class EpochMetrics(TrainingCallback):
    """Add the metrics of each epoch to the history: losses and accuracies, learning rate and speed.

    `epoch_seconds` includes validation, `images_per_second` does not. The validation recall of each class is among the
    metrics where there are at most `RECALL_CLASSES` of them. Without validation images there are no metrics of these.

    Args:
        images: Number of images in the training batches of an epoch.
        classes: Names by label.
        learning_rate: Takes an epoch, counted from 0, and returns the learning rate of its last step.
    """

    def __init__(self, *, images: int, classes: Sequence[str], learning_rate: Callable[[int], float]) -> None:
        super().__init__()
        self.images = images
        self.classes = classes
        self.learning_rate = learning_rate
        self._began = self._trained = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        metrics = {name: float(logs[name]) for name in ("loss", "accuracy")}
        if "val_loss" in logs:
            metrics |= self._validation_metrics(logs)
            # for the progress bar, which shows Keras' own metrics
            logs[self.progress.monitor] = metrics[self.progress.monitor]
        metrics["learning_rate"] = self.learning_rate(epoch)
        metrics["epoch_seconds"] = time.perf_counter() - self._began
        metrics["images_per_second"] = self.images / (self._trained - self._began)
        self.progress.add_epoch(metrics)

    def _validation_metrics(self, logs: dict[str, float]) -> dict[str, float]:
        metrics = {name: float(logs[name]) for name in ("val_loss", "val_accuracy")}
        # of the validation images, which were counted last
        counts = class_counts(self.model)
        metrics["val_balanced_accuracy"] = float(balanced_accuracy(counts))
        metrics["val_macro_f1"] = float(macro_f1(counts))
        if len(self.classes) <= RECALL_CLASSES:
            metrics |= {f"val_{name}": recall for name, recall in recalls(counts, classes=self.classes).items()}
        return metrics


class BestWeights(TrainingCallback):
    """Keep a copy of the weights of the best epoch, see `TrainingProgress.best_epoch`."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if self.progress.best_epoch == self.progress.epoch:
            self.progress.best_weights = self.model.get_weights()


class EarlyStopping(TrainingCallback):
    """Stop training when the monitored metric has not improved for a number of epochs.

    Unlike Keras' callback of that name, it counts from the history, so that a resumed training stops at the same epoch.

    Args:
        patience: Number of epochs without improvement; None never stops.
        head_epochs: Number of epochs of the last layer alone, of which none counts: all layers are still to be trained.
    """

    def __init__(self, patience: int | None, *, head_epochs: int = 0) -> None:
        super().__init__()
        self.patience, self.head_epochs = patience, head_epochs

    def is_out_of_patience(self) -> bool:
        """Return whether the best epoch, and the last one of the head alone, are at least `patience` epochs ago."""
        if self.patience is None or not self.progress.epoch:
            return False
        return self.progress.epoch - max(self.progress.best_epoch, self.head_epochs) >= self.patience

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if self.is_out_of_patience():
            self.model.stop_training = True


class EMAWeights(TrainingCallback):
    """Validate, and select the best weights from, a moving average of the weights; train on with the raw weights.

    The averages are in the model from the last step of an epoch to its end, also while it is validated. The optimizer
    computes them, step by step and among its own variables, so that a checkpoint of the optimizer includes them (Polyak
    & Juditsky 1992; Keras' `use_ema`). Keras' SwapEMAWeights is not used: it restores the raw weights only up to
    rounding, and leaves batch norm with the statistics of activations that the averaged weights do not produce.

    Args:
        batches: Returns some training batches like those of an epoch, counted from 0: images first. Batch norm's
            statistics are computed anew from them.
        groups: Number of groups of training steps in an epoch, see `StepGroups`.
    """

    def __init__(self, batches: Callable[[int], Iterable[tuple[tf.Tensor, ...]]], *, groups: int) -> None:
        super().__init__()
        self.batches = batches
        self.groups = groups
        self._epoch = 0
        self._raw: Sequence[npt.NDArray] | None = None
        self._forward: Callable[[tf.Tensor], None] | None = None

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        # a new one, as other layers may be frozen by now
        self._forward = forward_pass(self.model)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        # not when validation begins, as there may be none
        if batch + 1 < self.groups:
            return
        self._raw = self.model.get_weights()
        for weight, average in zip(self.model.trainable_variables, moving_averages(self.model.optimizer), strict=True):
            weight.assign(average)
        renew_batch_norm(self.model, self.batches(self._epoch), self._forward)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if self._raw is not None:
            self.model.set_weights(self._raw)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        # Keras leaves the averages in the model, from which the next `fit` would train on
        if self._raw is not None:
            self.model.set_weights(self._raw)
            self._raw = None
        self._forward = None


def moving_averages(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the averages that an optimizer with `use_ema` keeps, in the order of the variables that it trains."""
    # float16's loss scaling wraps the optimizer
    plain = getattr(optimizer, "inner_optimizer", optimizer)
    return plain._model_variables_moving_average


def forward_pass(model: keras.Model) -> Callable[[tf.Tensor], None]:
    """Return a function that updates batch norm's moving averages with a batch of images, as a training step does.

    It is traced where one device trains: operation by operation, a batch of a small network took ten times as long.
    """

    def forward(images: tf.Tensor) -> None:
        model(images, training=True)

    if model.distribute_strategy.num_replicas_in_sync > 1:
        return forward
    return tf.function(forward, autograph=False, reduce_retracing=True)


def renew_batch_norm(
    model: keras.Model,
    batches: Iterable[tuple[tf.Tensor, ...]],
    forward: Callable[[tf.Tensor], None] | None = None,
) -> None:
    """Set batch norm's moving averages to those that these batches produce with the present weights, from nothing.

    See Izmailov et al. 2018, arXiv 1803.05407, section 3.2. As each batch counts momentum times as much as the one
    after it, and the initial value not at all, the sums over n batches are divided by 1 - momentum ** n.

    Args:
        model: The network.
        batches: Images first.
        forward: The network's `forward_pass`, which it need not trace anew; None makes one.
    """
    forward = forward or forward_pass(model)
    norms = [layer for layer in model.layers if hasattr(layer, "moving_variance") and layer.trainable]
    statistics = [
        (statistic, norm.momentum) for norm in norms for statistic in (norm.moving_mean, norm.moving_variance)
    ]
    for statistic, _ in statistics:
        statistic.assign(np.zeros(statistic.shape, np.float32))
    count = 0
    for images, *_ in batches:
        forward(images)
        count += 1
    for statistic, momentum in statistics:
        statistic.assign(statistic / (1 - momentum**count))


class KernelSnapshots(TrainingCallback):
    """Save a block's depthwise kernels (k, k, filters, 1) before training and after selected epochs: how they form.

    They are files, so that a run that is resumed after a kill finds those of its earlier epochs. A run that is resumed
    on another machine does not find them and shows the later ones only.

    Args:
        folder: Where the files are; created when needed.
        epochs: Number of epochs of the whole training.
        steps: Number of epochs to select beside epoch 0, see `snapshot_epochs`; 0 saves nothing.
        block: Which block's kernels, counted from 1.
    """

    def __init__(self, folder: Path, *, epochs: int, steps: int, block: int) -> None:
        super().__init__()
        self.block = block
        self._folder = folder
        self._epochs = frozenset(snapshot_epochs(epochs, steps))

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        # a resumed training does not begin with the initial weights
        if self._epochs and not self.progress.epoch:
            self.save(0, depthwise_kernels(self.model, self.block))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if epoch + 1 in self._epochs:
            self.save(epoch + 1, depthwise_kernels(self.model, self.block))

    def save(self, epoch: int, kernels: npt.NDArray) -> None:
        """Write the kernels of an epoch to a file, whole or not at all; warn if that fails."""
        path = self._folder / f"filters-{epoch:06d}.npy"
        part = path.with_suffix(".part")
        try:
            make_private(self._folder)
            with open(part, "wb") as file:
                np.save(file, kernels, allow_pickle=False)
            os.replace(part, path)
        except OSError as error:
            log.warning("the filters of epoch %s could not be saved: %s", epoch, printable(error.strerror))

    def load(self) -> dict[int, npt.NDArray]:
        """Return the saved kernels by epoch, those of the process before a resumption included."""
        snapshots = {}
        for path in sorted(self._folder.glob("filters-*.npy")):
            try:
                snapshots[int(path.stem.removeprefix("filters-"))] = np.load(path, allow_pickle=False)
            except Exception as error:  # noqa: BLE001 - NumPy raises many kinds for a damaged file
                log.warning("%s cannot be read and is not shown: %s", printable(path), printable(error))
        return snapshots


def snapshot_epochs(epochs: int, steps: int) -> list[int]:
    """Return at most `steps` epochs from the first to the last, in about equal ratios: filters form early."""
    if steps < 2:
        return [epochs] * steps
    return sorted({int(epoch) for epoch in np.geomspace(1, epochs, steps).round()})


class CheckpointSaver(TrainingCallback):
    """Save the state of the training after each epoch.

    Args:
        save: Stores a state, see `CheckpointManager.save`.
    """

    def __init__(self, save: Callable[[TrainingState], None]) -> None:
        super().__init__()
        self.save = save

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.save(self.progress.state(self.model))


class ProgressReporter(TrainingCallback):
    """Call functions after each group of training steps and each epoch; training ends with what they raise.

    Args:
        report_epoch: Takes the epoch, counted from 1, and its metrics.
        after_step: Takes nothing; called after each step, or each group of `steps_per_execution` of them.
    """

    def __init__(
        self,
        report_epoch: Callable[[int, dict[str, float]], None] | None = None,
        *,
        after_step: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.report_epoch = report_epoch
        self.after_step = after_step

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if self.after_step:
            self.after_step()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if self.report_epoch:
            self.report_epoch(epoch + 1, self.progress.last_metrics())


class ProgressBar(keras.callbacks.ProgbarLogger):
    """Keras' progress bar, which counts steps although Keras calls back once in each group of them.

    Args:
        groups: The steps between which Keras calls back.
    """

    def __init__(self, groups: StepGroups) -> None:
        super().__init__()
        self.groups = groups

    def set_params(self, params: dict[str, Any]) -> None:
        super().set_params(params)
        self.target = self.groups.steps

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        super().on_train_batch_end(self.groups.last_step(batch) - 1, logs)


# Order of the callbacks at each event, whatever the order in which they were passed.
ORDER = (
    # A loss that is not finite is neither recorded nor selected nor saved.
    TerminateOnNonFinite,
    # All that follow read the history.
    EpochMetrics,
    # These two see the averaged weights, as validation did.
    BestWeights,
    EarlyStopping,
    # It puts the raw weights back at the end of the epoch.
    EMAWeights,
    # These two see the raw weights, with which training goes on.
    KernelSnapshots,
    CheckpointSaver,
    # An epoch that has been reported has been saved: a process that is stopped meanwhile resumes after it.
    ProgressReporter,
)


def order_callbacks(callbacks: Iterable[keras.callbacks.Callback]) -> list[keras.callbacks.Callback]:
    """Sort callbacks by `ORDER`; others come last, in the order in which they were passed."""

    def position(callback: keras.callbacks.Callback) -> int:
        return next((index for index, kind in enumerate(ORDER) if isinstance(callback, kind)), len(ORDER))

    return sorted(callbacks, key=position)
