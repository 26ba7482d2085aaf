"""A rectangle in each image of a batch."""

import tensorflow as tf


def inside(images: tf.Tensor, *, top: tf.Tensor, left: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Which pixels lie in their image's rectangle, (b, h, w, 1) bool; parts of it may lie outside the image.

    Args:
        top: its first row, as the others (b,) int32 in pixels.
    """
    rows = tf.range(images.shape[1])[None] - top[:, None]  # (b, h)
    columns = tf.range(images.shape[2])[None] - left[:, None]  # (b, w)
    down = (rows >= 0) & (rows < height[:, None])
    across = (columns >= 0) & (columns < width[:, None])
    return (down[:, :, None] & across[:, None, :])[..., None]
