"""One affine transformation an image: matrices (3, 3) from a place in the changed image to its source, in pixels."""

import math

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.data.augmentation.random_ops import randint, select

Matrix = npt.NDArray[np.float32]  # (3, 3), on (x, y, 1) with (0, 0, 1) the image's upper left corner


def affine_transform(images: tf.Tensor, matrices: tf.Tensor) -> tf.Tensor:
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


def identity() -> Matrix:
    """The matrix that moves nothing."""
    return np.eye(3, dtype=np.float32)


def shear(across: float, down: float) -> Matrix:
    """Columns moved across by so many pixels a row, or rows down by so many a column; the corner stays."""
    return np.array([[1, across, 0], [down, 1, 0], [0, 0, 1]], np.float32)


def translate(across: float, down: float) -> Matrix:
    """Moved by so many pixels."""
    return np.array([[1, 0, across], [0, 1, down], [0, 0, 1]], np.float32)


def rotate(degrees: float, *, height: int, width: int) -> Matrix:
    """Turned counter-clockwise about the middle of the image."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return (translate(width / 2, height / 2) @ turn @ translate(-width / 2, -height / 2)).astype(np.float32)


def random_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Half of the images, by chance, mirrored left to right."""
    return select(
        randint(images, seed, 2) == 1, tf.reverse(images, [2]), images
    )  # a slice [::-1] takes 9 times as long


def random_translation(images: tf.Tensor, seed: tf.Tensor, *, most: int) -> tf.Tensor:
    """Each image moved by -most to +most pixels down and, apart, across; what comes in is reflected at the edge.

    `most` is less than the height and the width.
    """
    height, width = images.shape[1], images.shape[2]
    padded = tf.pad(images, [[0, 0], [most, most], [most, most], [0, 0]], mode="REFLECT")
    down, across = (randint(images, tf.random.fold_in(seed, axis), 2 * most + 1) for axis in range(2))  # (b,) each
    rows = down[:, None] + tf.range(height)[None]  # (b, h)
    columns = across[:, None] + tf.range(width)[None]  # (b, w)
    moved = tf.gather(padded, rows, axis=1, batch_dims=1)  # (b, h, w + 2 most, c)
    return tf.gather(moved, columns, axis=2, batch_dims=1)  # (b, h, w, c)
