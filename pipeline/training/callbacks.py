"""Validation, and the weights that are kept, on a moving average of the weights; training goes on with the raw ones.

The average itself is kept by the optimizer, step by step and among its own variables, so that saving those saves it
(Polyak & Juditsky 1992; Keras' `use_ema`). Keras' SwapEMAWeights callback is not used: it restores the raw weights only
up to rounding, and leaves the batch norms with the statistics of activations that the averaged weights do not have.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.runtime.files import make_private
from pipeline.runtime.text import printable


class EMAWeights(keras.callbacks.Callback):
    """Puts the averages into the model from the start of validation to the end of the epoch.

    Callbacks that want the averages when an epoch ends (a checkpoint of the best weights) come before it in the list,
    those that want the raw weights (a checkpoint to go on from) after it.
    """

    def __init__(self, batches: Iterable[tuple[tf.Tensor, tf.Tensor]]) -> None:
        """`batches` are some of the training batches, from which the batch norms' statistics are taken anew."""
        super().__init__()
        self.batches = batches
        self._raw: Sequence[npt.NDArray] | None = None

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        self._raw = self.model.get_weights()
        for weight, average in zip(self.model.trainable_variables, is_ema_enabled(self.model.optimizer), strict=True):
            weight.assign(average)
        renew_batch_norm(self.model, self.batches)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if self._raw is not None:
            self.model.set_weights(self._raw)
            self._raw = None


def is_ema_enabled(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The moving averages that an optimizer with `use_ema` keeps, in the order of the variables that it trains."""
    plain = getattr(optimizer, "inner_optimizer", optimizer)  # float16's loss scaling wraps it
    return plain._model_variables_moving_average


def renew_batch_norm(model: keras.Model, batches: Iterable[tuple[tf.Tensor, tf.Tensor]]) -> None:
    """Give the batch norms the moving averages that these batches make with the present weights, from nothing.

    (Izmailov et al. 2018, arXiv 1803.05407, section 3.2.) As each batch counts momentum times as much as the one after
    it, and the start not at all, n batches together leave 1 - momentum ** n to be divided by.
    """
    norms = [layer for layer in model.layers if hasattr(layer, "moving_variance")]
    statistics = [
        (statistic, norm.momentum) for norm in norms for statistic in (norm.moving_mean, norm.moving_variance)
    ]
    for statistic, _ in statistics:
        statistic.assign(np.zeros(statistic.shape, np.float32))
    count = 0
    for images, _ in batches:
        model(images, training=True)
        count += 1
    for statistic, momentum in statistics:
        statistic.assign(statistic / (1 - momentum**count))


log = logging.getLogger(__name__)


def snapshot_epochs(epochs: int, steps: int) -> list[int]:
    """At most so many epochs from the first to the last, in about equal ratios: filters form early."""
    if steps < 2:
        return [epochs] * steps
    return sorted({int(epoch) for epoch in np.geomspace(1, epochs, steps).round()})


class KernelSnapshots:
    """Kernels (k, k, filters, 1) by epoch, in files, so that a run which goes on after a kill finds them again.

    A run that goes on upon another machine finds none of the earlier ones, and draws what it has.
    """

    def __init__(self, folder: Path, *, epochs: int, steps: int) -> None:
        self._folder = folder
        self._wanted = frozenset(snapshot_epochs(epochs, steps))

    def wants(self, epoch: int) -> bool:
        """Whether the kernels after an epoch, counted from 1, are to be kept."""
        return epoch in self._wanted

    def keep(self, epoch: int, kernels: npt.NDArray) -> None:
        """Put them into a file, whole or not at all; one that cannot be written costs a warning."""
        path = self._folder / f"filters-{epoch:06d}.npy"
        part = path.with_suffix(".part")
        try:
            make_private(self._folder)
            with open(part, "wb") as file:
                np.save(file, kernels, allow_pickle=False)
            os.replace(part, path)
        except OSError as error:
            log.warning("the filters of epoch %s could not be kept: %s", epoch, printable(error.strerror))

    def kept(self) -> dict[int, npt.NDArray]:
        """All that are there, by epoch."""
        files = sorted(self._folder.glob("filters-*.npy"))
        return {int(path.stem.removeprefix("filters-")): np.load(path, allow_pickle=False) for path in files}
