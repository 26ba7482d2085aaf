"""Flips, translations and affine transformations of images.

A matrix (3, 3) maps a position in the transformed image to its source, in pixels.
"""

import math

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline.data.augmentation.random_ops import randint, select

Matrix = npt.NDArray[np.float32]  # (3, 3), on (x, y, 1) with (0, 0, 1) the image's upper left corner


def affine_transform(images: tf.Tensor, matrices: tf.Tensor, *, for_xla: bool = False) -> tf.Tensor:
    """Transform each image (b, h, w, c) by its matrix (b, 3, 3), with the nearest pixel, and 0 from outside.

    Args:
        for_xla: Use operations that XLA can compile, which are slower without it; the result is the same.
    """
    a, b, x = matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 0, 2]
    c, d, y = matrices[:, 1, 0], matrices[:, 1, 1], matrices[:, 1, 2]
    # The op's origin is the center of the first pixel.
    x, y = x + (a + b - 1) / 2, y + (c + d - 1) / 2
    if for_xla:
        return _gather_nearest(images, a, b, x, c, d, y)
    zero = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([a, b, x, c, d, y, zero, zero], axis=1),
        output_shape=images.shape[1:3],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )


def _gather_nearest(images: tf.Tensor, *coefficients: tf.Tensor) -> tf.Tensor:
    """Return what ImageProjectiveTransformV3 does, by its formula: the pixel of each image nearest to each position.

    Args:
        images: (b, h, w, c).
        coefficients: Six (b,): a position (x, y) comes from (a x + b y + c, d x + e y + f).
    """
    height, width = images.shape[1], images.shape[2]
    a, b, c, d, e, f = (coefficient[:, None, None] for coefficient in coefficients)
    x, y = tf.range(width, dtype=tf.float32)[None, None], tf.range(height, dtype=tf.float32)[None, :, None]
    # a difference, because TensorFlow optimizes the sum of three terms to one in another order, which rounds otherwise
    column, row = (_round_half_away(p * x - q * -y + r) for p, q, r in ((a, b, c), (d, e, f)))  # (b, h, w)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixel = tf.where(inside, row * width + column, 0)
    flat = tf.reshape(images, [-1, height * width, images.shape[3]])
    return tf.where(inside[..., None], tf.gather(flat, pixel, axis=1, batch_dims=1), tf.zeros([], images.dtype))


def _round_half_away(positions: tf.Tensor) -> tf.Tensor:
    """Round to the nearest integer, int32, and a half away from zero as C++ does; tf.round takes the even one."""
    whole = tf.floor(tf.abs(positions))
    magnitude = whole + tf.cast(tf.abs(positions) - whole >= 0.5, positions.dtype)
    return tf.cast(tf.sign(positions) * magnitude, tf.int32)


def identity() -> Matrix:
    """Return the matrix that changes nothing."""
    return np.eye(3, dtype=np.float32)


def shear(x: float, y: float) -> Matrix:
    """Return the matrix of a shear by `x` pixels a row and `y` pixels a column, about the upper left corner."""
    return np.array([[1, x, 0], [y, 1, 0], [0, 0, 1]], np.float32)


def translate(x: float, y: float) -> Matrix:
    """Return the matrix of a translation by `x` and `y` pixels."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float32)


def rotate(degrees: float, *, height: int, width: int) -> Matrix:
    """Return the matrix of a counter-clockwise rotation about the center of the image."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return (translate(width / 2, height / 2) @ turn @ translate(-width / 2, -height / 2)).astype(np.float32)


def random_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirror each image left to right with probability 1/2."""
    return _random_mirror(images, seed, axis=2)


def random_vertical_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirror each image top to bottom with probability 1/2."""
    return _random_mirror(images, seed, axis=1)


def _random_mirror(images: tf.Tensor, seed: tf.Tensor, *, axis: int) -> tf.Tensor:
    # tf.reverse, because a slice [::-1] takes 9 times as long.
    return select(randint(images, seed, 2) == 1, tf.reverse(images, [axis]), images)


def random_translation(images: tf.Tensor, seed: tf.Tensor, *, max_pixels: int) -> tf.Tensor:
    """Shift each image by -max_pixels to +max_pixels, drawn for each axis alone; edges are reflected.

    `max_pixels` must be less than the height and the width.
    """
    height, width = images.shape[1], images.shape[2]
    padded = tf.pad(images, [[0, 0], [max_pixels, max_pixels], [max_pixels, max_pixels], [0, 0]], mode="REFLECT")
    down, across = (
        randint(images, tf.random.fold_in(seed, axis), 2 * max_pixels + 1) for axis in range(2)
    )  # (b,) each
    rows = down[:, None] + tf.range(height)[None]  # (b, h)
    columns = across[:, None] + tf.range(width)[None]  # (b, w)
    moved = tf.gather(padded, rows, axis=1, batch_dims=1)  # (b, h, w + 2 max_pixels, c)
    return tf.gather(moved, columns, axis=2, batch_dims=1)  # (b, h, w, c)
