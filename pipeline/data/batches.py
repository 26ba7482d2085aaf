"""Images and labels -> tf.data batches for training and for evaluation."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.data.augmentation.registry import Augment, augment_as_drawn, draw_numbers
from pipeline.runtime.cpu import available_cores

# b in the effective number of images: more than about a thousand of a class add little
EFFECTIVE_BASE = 0.999


class ImageSource(Protocol):
    """Labelled images that can be gathered by position."""

    def __len__(self) -> int: ...

    def take(self, positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return the images (b, h, w, c) and labels (b,) at these positions."""
        ...


class BatchPlan(NamedTuple):
    """What is decided on the host of a training batch that is made on a device."""

    positions: tf.Tensor  # (b,) int64, of the images
    mirrored: tf.Tensor  # (b,) bool, by an alternating flip
    drawn: tuple[tf.Tensor, ...]  # the random numbers of the augmentation, see `draw_numbers`


class DeviceImages(NamedTuple):
    """All training images in the memory of a device."""

    images: tf.Tensor  # (n, h, w, c) uint8
    labels: tf.Tensor  # (n,) int64

    @classmethod
    def copy_of(cls, images: ImageSource) -> Self:
        """Copy images to the first GPU that TensorFlow uses, or on a machine without one to a tensor of the host."""
        with tf.device("GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"):
            return cls(*(tf.constant(part) for part in images.take(np.arange(len(images)))))


class TrainingBatches:
    """The shuffled and augmented batches of all epochs, one epoch after another.

    A batch is a function of seed, epoch and position in the epoch alone, so that training can resume at any epoch with
    the batches that it would have had: the order is a new permutation each epoch, and each step has its own seed. It is
    the same whether the host makes it, as a part of the data set, or the device, as a part of the training step.

    A batch consists of images (b, h, w, c) uint8 and labels (b, classes) float32, with `class_weights` also weights
    (b,) float32; there are `count_steps` of them an epoch.

    Args:
        augment: Function from images, labels and a seed (2,) to augmented images and labels.
        label_smoothing: 1 - label_smoothing of each label is on its class, the rest is spread over all classes
            (Szegedy et al. 2016, arXiv 1512.00567, section 7). Labels are smoothed before they are augmented.
        class_weights: Weight of the loss of each class's images, (classes,); None gives no weights. The weight of an
            image whose label is soft is the mean of those of its classes.
        balanced_labels: Label (n,) of each image, to take as many images of each class; None takes each image once.
        initial_epoch: Number of epochs to leave out at the start.
        alternating_flip: Mirror half of the images in the first epoch, and then each image in every other epoch, so
            that two successive epochs show both of its sides (Jordan 2024, arXiv 2404.00498, section 3.6).
        size: (height, width) to which the augmented images are resized; None leaves them as they are.
        batch_multiple: The size of each batch is a multiple of this. Each epoch leaves out the images of its last,
            smaller batch that exceed a multiple.
    """

    def __init__(
        self,
        images: ImageSource,
        *,
        image_shape: tuple[int, int, int],
        classes: int,
        batch_size: int,
        epochs: int,
        seed: int,
        augment: Augment,
        label_smoothing: float,
        class_weights: npt.NDArray[np.float32] | None = None,
        balanced_labels: npt.NDArray[np.int64] | None = None,
        initial_epoch: int = 0,
        alternating_flip: bool = False,
        size: tuple[int, int] | None = None,
        batch_multiple: int = 1,
    ) -> None:
        self.images = images
        self.image_shape = image_shape
        self.classes = classes
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.balanced_labels = balanced_labels
        self.size = size
        self._used = count_images(len(images), batch_size=batch_size, batch_multiple=batch_multiple)
        self._steps_per_epoch = count_steps(len(images), batch_size=batch_size, batch_multiple=batch_multiple)
        self._steps = range(initial_epoch * self._steps_per_epoch, epochs * self._steps_per_epoch)
        self._mirrored_first: npt.NDArray[np.int64] | None = None
        if alternating_flip:
            # The order of epoch e is drawn with [seed, e].
            self._mirrored_first = np.random.Generator(np.random.PCG64([seed, 0, 1])).integers(0, 2, len(images))
        # Two epochs, because the end of one is read while the next begins.
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)

    def on_host(self) -> tf.data.Dataset:
        """Return the batches, which the host makes."""

        def gather(step: np.int64) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
            positions, mirrored = self._place(step)
            pixels, labels = self.images.take(positions)
            if self._mirrored_first is not None:
                pixels = np.where(mirrored[:, None, None, None], pixels[:, :, ::-1], pixels)
            return pixels, labels

        def batch(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
            pixels, labels = _call_gather(gather, step, self.image_shape)
            return self._finish(*self.augment(pixels, self._soft_labels(labels), self._step_seed(step)))

        return self._map_steps(batch)

    def plans(self) -> tf.data.Dataset:
        """Return the plans of the batches, from which `on_device` makes them."""

        def plan(step: tf.Tensor) -> BatchPlan:
            positions, mirrored = tf.numpy_function(self._place, [step], [tf.int64, tf.bool], stateful=False)
            positions, mirrored = (tf.ensure_shape(part, (None,)) for part in (positions, mirrored))
            count, seed = tf.size(positions), self._step_seed(step)
            drawn = draw_numbers(self.augment, count, seed, image_shape=self.image_shape, classes=self.classes)
            return BatchPlan(positions, mirrored, drawn)

        return self._map_steps(plan)

    def on_device(self, source: DeviceImages, plan: BatchPlan) -> tuple[tf.Tensor, ...]:
        """Return the batch of a plan, as a part of a graph that a device executes."""
        pixels, labels = (tf.gather(part, plan.positions) for part in source)
        if self._mirrored_first is not None:
            pixels = tf.where(plan.mirrored[:, None, None, None], tf.reverse(pixels, [2]), pixels)
        return self._finish(*augment_as_drawn(self.augment, pixels, self._soft_labels(labels), plan.drawn))

    def _draw_order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the positions of an epoch's images in their order."""
        random = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        if self.balanced_labels is not None:
            return random.permutation(_balanced_positions(self.balanced_labels, random))[: self._used]
        return random.permutation(len(self.images))[: self._used]

    def _place(self, step: np.int64) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return the positions of a batch's images, and whether an alternating flip mirrors them."""
        epoch, place = divmod(int(step), self._steps_per_epoch)
        positions = self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        if self._mirrored_first is None:
            return positions, np.zeros(len(positions), bool)
        return positions, (self._mirrored_first[positions] + epoch) % 2 == 1

    def _step_seed(self, step: tf.Tensor) -> tf.Tensor:
        return tf.stack([tf.cast(self.seed, tf.int64), step])

    def _soft_labels(self, labels: tf.Tensor) -> tf.Tensor:
        return tf.one_hot(labels, self.classes) * (1 - self.label_smoothing) + self.label_smoothing / self.classes

    def _finish(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Return the batch of augmented images and labels: resized, and with weights where classes have them."""
        if self.size is not None and self.size != self.image_shape[:2]:
            images = resize(images, self.size)
        if self.class_weights is None:
            return images, labels
        # smoothing gives each image a part of every class, which would even the weights out; labels add up to 1
        smoothed = self.label_smoothing * self.class_weights.mean()
        weights = (self.class_weights - smoothed) / (1 - self.label_smoothing)
        return images, labels, tf.linalg.matvec(labels, weights.astype(np.float32))

    def _map_steps(self, function: Callable[[tf.Tensor], Any]) -> tf.data.Dataset:
        """Return a data set of what a function returns for each step."""
        # Machines with GPUs, which need batches fast, have many cores; on a CPU the training step needs the cores more.
        parallel_calls = max(2, available_cores() // 2)
        options = tf.data.Options()
        # Batches have threads of their own, because TensorFlow's are busy with the training step.
        options.threading.private_threadpool_size = parallel_calls
        # AutoGraph would look for an `if` on a tensor, of which there is none, and take up to 12 s for it.
        plain = tf.autograph.experimental.do_not_convert(function)
        steps = tf.data.Dataset.range(self._steps.start, self._steps.stop)
        return steps.map(plain, num_parallel_calls=parallel_calls).prefetch(tf.data.AUTOTUNE).with_options(options)


def resize(images: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Return images (b, h, w, c) in another size, each pixel the mean of the area that it covers."""
    return tf.cast(tf.round(tf.image.resize(images, size, method="area")), images.dtype)


def _balanced_positions(labels: npt.NDArray[np.int64], random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return as many positions as there are labels, as many of each class as of another or one more.

    Of each class all images come equally often, or once more.
    """
    classes = np.unique(labels)
    parts = np.array_split(np.arange(len(labels)), len(classes))
    positions = []
    for label, part in zip(random.permutation(classes), parts, strict=True):
        of_class = np.flatnonzero(labels == label)
        rounds = math.ceil(len(part) / len(of_class))
        positions.append(np.concatenate([random.permutation(of_class) for _ in range(rounds)])[: len(part)])
    return np.concatenate(positions)


def class_weights(kind: str, labels: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float32] | None:
    """Return the weight of the loss of each class's images, (classes,), whose mean over the images is 1.

    Args:
        kind: none; balanced, the reciprocal of the number of images; or effective, the reciprocal of the effective
            number, (1 - b^n) / (1 - b) with b = 0.999 (Cui et al. 2019, arXiv 1901.05555, equation 2).
        labels: Of the training images, (n,).
        classes: Their number; one without images has the weight 0.

    Returns:
        None for none.
    """
    if kind == "none":
        return None
    images = np.bincount(labels, minlength=classes).astype(np.float64)
    numbers = images if kind == "balanced" else (1 - EFFECTIVE_BASE**images) / (1 - EFFECTIVE_BASE)
    weights = np.divide(1, numbers, out=np.zeros(classes), where=numbers > 0)
    return (weights * len(labels) / (weights * images).sum()).astype(np.float32)


def count_steps(images: int, *, batch_size: int, batch_multiple: int) -> int:
    """Return the number of training batches an epoch."""
    return math.ceil(count_images(images, batch_size=batch_size, batch_multiple=batch_multiple) / batch_size)


def count_images(images: int, *, batch_size: int, batch_multiple: int) -> int:
    """Return the number of images in the training batches of an epoch, which leave out the others."""
    return images - images % batch_size % batch_multiple


def evaluation_batches(
    images: ImageSource, *, image_shape: tuple[int, int, int], classes: int, batch_size: int
) -> tf.data.Dataset:
    """Return batches of every image once, in order: images (b, h, w, c) uint8, one-hot labels (b, classes) float32.

    Batches have at most `batch_size` images and nearly equal sizes, so that the last is not one image for many devices.
    """
    batch_positions = np.array_split(np.arange(len(images)), math.ceil(len(images) / batch_size))

    def gather(step: np.int64) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        return images.take(batch_positions[int(step)])

    @tf.autograph.experimental.do_not_convert
    def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels, labels = _call_gather(gather, step, image_shape)
        return pixels, tf.one_hot(labels, classes)

    return tf.data.Dataset.range(len(batch_positions)).map(batch).prefetch(tf.data.AUTOTUNE)


def _call_gather(gather: Callable, step: tf.Tensor, image_shape: tuple[int, int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Call a Python function from a graph; it returns images (b, h, w, c) uint8 and labels (b,) int64."""
    pixels, labels = tf.numpy_function(gather, [step], [tf.uint8, tf.int64], stateful=False)
    return tf.ensure_shape(pixels, (None, *image_shape)), tf.ensure_shape(labels, (None,))
