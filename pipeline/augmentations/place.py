"""Where things are in an image: mirrored, and shifted."""

import tensorflow as tf

from pipeline.augmentations.chance import chosen, whole


def mirrored(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Half of the images, by chance, mirrored left to right."""
    return chosen(whole(images, seed, 2) == 1, tf.reverse(images, [2]), images)  # a slice [::-1] takes 9 times as long


def shifted(images: tf.Tensor, seed: tf.Tensor, *, most: int) -> tf.Tensor:
    """Each image moved by -most to +most pixels down and, apart, across; what comes in is reflected at the edge.

    `most` is less than the height and the width.
    """
    height, width = images.shape[1], images.shape[2]
    padded = tf.pad(images, [[0, 0], [most, most], [most, most], [0, 0]], mode="REFLECT")
    down, across = (whole(images, tf.random.fold_in(seed, axis), 2 * most + 1) for axis in range(2))  # (b,) each
    rows = down[:, None] + tf.range(height)[None]  # (b, h)
    columns = across[:, None] + tf.range(width)[None]  # (b, w)
    moved = tf.gather(padded, rows, axis=1, batch_dims=1)  # (b, h, w + 2 most, c)
    return tf.gather(moved, columns, axis=2, batch_dims=1)  # (b, h, w, c)
