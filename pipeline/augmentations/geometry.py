"""One affine transformation an image: matrices (3, 3) from a place in the changed image to its source, in pixels."""

import math

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Matrix = npt.NDArray[np.float32]  # (3, 3), on (x, y, 1) with (0, 0, 1) the image's upper left corner


def warped(images: tf.Tensor, matrices: tf.Tensor) -> tf.Tensor:
    """Each image (b, h, w, c) by its matrix (b, 3, 3): the nearest pixel, and 0 from beyond the edges."""
    a, b, x = matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 0, 2]
    c, d, y = matrices[:, 1, 0], matrices[:, 1, 1], matrices[:, 1, 2]
    x, y = x + (a + b - 1) / 2, y + (c + d - 1) / 2  # the op counts from the middle of the first pixel
    zero = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([a, b, x, c, d, y, zero, zero], axis=1),
        output_shape=images.shape[1:3],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )


def unchanged() -> Matrix:
    """The matrix that moves nothing."""
    return np.eye(3, dtype=np.float32)


def sheared(across: float, down: float) -> Matrix:
    """Columns moved across by so many pixels a row, or rows down by so many a column; the corner stays."""
    return np.array([[1, across, 0], [down, 1, 0], [0, 0, 1]], np.float32)


def translated(across: float, down: float) -> Matrix:
    """Moved by so many pixels."""
    return np.array([[1, 0, across], [0, 1, down], [0, 0, 1]], np.float32)


def rotated(degrees: float, *, height: int, width: int) -> Matrix:
    """Turned counter-clockwise about the middle of the image."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return (translated(width / 2, height / 2) @ turn @ translated(-width / 2, -height / 2)).astype(np.float32)
