"""A draw for each image of a batch, a function of the seed alone, which is a pair of integers; and what it decides."""

import tensorflow as tf


def box_mask(images: tf.Tensor, *, top: tf.Tensor, left: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Which pixels lie in their image's rectangle, (b, h, w, 1) bool; parts of it may lie outside the image.

    Args:
        top: its first row, as the others (b,) int32 in pixels.
    """
    rows = tf.range(images.shape[1])[None] - top[:, None]  # (b, h)
    columns = tf.range(images.shape[2])[None] - left[:, None]  # (b, w)
    down = (rows >= 0) & (rows < height[:, None])
    across = (columns >= 0) & (columns < width[:, None])
    return (down[:, :, None] & across[:, None, :])[..., None]


def randint(images: tf.Tensor, seed: tf.Tensor, outcomes: int) -> tf.Tensor:
    """A number from 0 to outcomes - 1 for each image: (b,) int32."""
    return tf.random.stateless_uniform([tf.shape(images)[0]], seed, 0, outcomes, dtype=tf.int32)


def uniform(images: tf.Tensor, seed: tf.Tensor, low: float = 0.0, high: float = 1.0) -> tf.Tensor:
    """A number from low to below high for each image: (b,) float32."""
    return tf.random.stateless_uniform([tf.shape(images)[0]], seed, low, high)


def select(which: tf.Tensor, these: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """These images where `which` (b,) bool is true, else the others: (b, h, w, c), in a third of tf.where's time."""
    return tf.raw_ops.Select(condition=which, x=these, y=others)


def beta(images: tf.Tensor, seed: tf.Tensor, alpha: float) -> tf.Tensor:
    """A number from 0 to 1 for each image, of the distribution Beta(alpha, alpha): (b,) float32."""
    drawn = tf.random.stateless_gamma([2, tf.shape(images)[0]], seed, alpha, dtype=tf.float64)
    share = tf.where(
        drawn[0] == drawn[1], tf.ones_like(drawn[0]), drawn[0] / (drawn[0] + drawn[1])
    )  # where a tiny alpha underflows: 1
    return tf.cast(share, tf.float32)
