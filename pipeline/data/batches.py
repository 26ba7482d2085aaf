"""Images and labels -> tf.data batches; the training batches of any epoch can be made again alone."""

import functools
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.runtime.cpu import available_cores


class ImageSource(Protocol):
    """Labelled images that can be gathered by position."""

    def __len__(self) -> int: ...

    def take(self, positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Images (b, h, w, c) and labels (b,) at these positions."""
        ...


def training_batches(
    images: ImageSource,
    *,
    image_shape: tuple[int, int, int],
    classes: int,
    batch_size: int,
    epochs: int,
    seed: int,
    change: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    label_smoothing: float,
    after: int = 0,
    multiple: int = 1,
) -> tf.data.Dataset:
    """All batches of all epochs in one row, `steps` an epoch, the last of each the smaller.

    With `after` the first so many epochs are left out, and the others are as if they had not been. The size of each
    batch is a multiple of `multiple`: an epoch leaves out what its last batch has beyond that.

    A batch is a function of seed, epoch and position alone: the order is a new permutation every epoch, and `change`
    (images, labels, seed) -> images, labels gets a seed of its own for each step.

    Returns:
        Images (b, h, w, c) uint8 and soft labels (b, classes) float32. Before the change, 1 - label_smoothing of each
        is on the truth and the rest spread over all classes (Szegedy et al. 2016, arXiv 1512.00567, section 7).
    """
    used = _used(len(images), batch_size, multiple)
    steps_per_epoch = steps(len(images), batch_size=batch_size, multiple=multiple)

    @functools.lru_cache(maxsize=2)  # the end of one epoch is read while the next begins
    def order(epoch: int) -> npt.NDArray[np.int64]:
        return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(len(images))[:used]

    def gather(step: np.int64) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        epoch, position = divmod(int(step), steps_per_epoch)
        return images.take(order(epoch)[position * batch_size : (position + 1) * batch_size])

    def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels, labels = _gathered(gather, step, image_shape)
        soft = tf.one_hot(labels, classes) * (1 - label_smoothing) + label_smoothing / classes
        return change(pixels, soft, tf.stack([tf.cast(seed, tf.int64), step]))

    plain = tf.autograph.experimental.do_not_convert(batch)  # it has no `if` on a tensor, and looking takes up to 12 s
    left = tf.data.Dataset.range(after * steps_per_epoch, epochs * steps_per_epoch)
    at_once = max(
        2, available_cores() // 2
    )  # what a GPU needs has many cores; on a CPU the training step needs them more
    options = tf.data.Options()
    options.threading.private_threadpool_size = at_once  # the step's own threads are busy with the step
    return left.map(plain, num_parallel_calls=at_once).prefetch(tf.data.AUTOTUNE).with_options(options)


def steps(images: int, *, batch_size: int, multiple: int) -> int:
    """Training batches an epoch."""
    return math.ceil(_used(images, batch_size, multiple) / batch_size)


def _used(images: int, batch_size: int, multiple: int) -> int:
    """Images that an epoch trains on."""
    return images - images % batch_size % multiple


def evaluation_batches(
    images: ImageSource, *, image_shape: tuple[int, int, int], classes: int, batch_size: int
) -> tf.data.Dataset:
    """Every image once, in its own order: images (b, h, w, c) uint8 and one-hot labels (b, classes) float32.

    Batches are of at most `batch_size` and nearly equal, so that the last is not one image for many devices.
    """
    parts = np.array_split(np.arange(len(images)), math.ceil(len(images) / batch_size))

    def gather(step: np.int64) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        return images.take(parts[int(step)])

    def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels, labels = _gathered(gather, step, image_shape)
        return pixels, tf.one_hot(labels, classes)

    return tf.data.Dataset.range(len(parts)).map(batch).prefetch(tf.data.AUTOTUNE)


def _gathered(gather: Callable, step: tf.Tensor, image_shape: tuple[int, int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    pixels, labels = tf.numpy_function(gather, [step], [tf.uint8, tf.int64], stateful=False)
    return tf.ensure_shape(pixels, (None, *image_shape)), tf.ensure_shape(labels, (None,))
