"""How much the answers of two forms of one model differ."""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

# From images (n, h, w, c), raw pixels 0 to 255, to probabilities (n, classes)
Predict = Callable[[npt.NDArray], npt.NDArray[np.float32]]
# Images predicted at once
BATCH_SIZE = 16


@dataclass(frozen=True)
class Comparison:
    """How much the probabilities of two models differ on the same images."""

    images: int
    max_difference: float  # of any probability; NaN if one is no number
    equal_classes: float  # share of the images whose most probable class is the same

    def is_within(self, tolerance: float) -> bool:
        """Return whether no probability differs by more than the tolerance."""
        return self.max_difference <= tolerance


def compare(expected: npt.NDArray, got: npt.NDArray) -> Comparison:
    """Compare probabilities (n, classes) of two models.

    Raises:
        ValueError: They have not the same shape, or are of no image.
    """
    if expected.shape != got.shape or not len(expected):
        raise ValueError(f"probabilities must be of one shape and of one image or more: {expected.shape}, {got.shape}")
    difference = np.abs(expected.astype(np.float64) - got)
    # np.max passes NaN on
    return Comparison(
        images=len(expected),
        max_difference=float(np.max(difference)),
        equal_classes=float(np.mean(expected.argmax(axis=1) == got.argmax(axis=1))),
    )


def predict_on_cpu(model: keras.Model, images: npt.NDArray) -> npt.NDArray[np.float32]:
    """Return the probabilities (n, classes) of a Keras model, computed by the CPU.

    A GPU may round the factors of its products to 10 bits (TF32), which costs more than the formats differ by.
    """
    return in_batches(lambda batch: np.asarray(_call_on_cpu(model, batch)), images)


def _call_on_cpu(model: keras.Model, images: npt.NDArray) -> tf.Tensor:
    with tf.device("CPU:0"):
        return model(tf.constant(images, tf.float32), training=False)


def in_batches(predict: Predict, images: npt.NDArray) -> npt.NDArray[np.float32]:
    """Return the probabilities of images, some of them at a time."""
    batches = (images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE))
    return np.concatenate([predict(batch) for batch in batches])
