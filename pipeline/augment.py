"""Images (b, h, w, c) -> changed images of the same shape; for training only.

Every kind is a function of the images and a seed, a pair of integers (tf.random.Generator's state has no part in it),
so that any batch can be made again alone.
"""

from collections.abc import Callable

import tensorflow as tf

Change = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def augmentation(*, flip: bool, translation: int) -> Change:
    """The changes that are on, in turn: (images (b, h, w, c) uint8, seed (2,)) -> images of the same shape and type."""
    changes: list[Change] = []
    if flip:
        changes.append(mirrored)
    if translation:
        changes.append(lambda images, seed: shifted(images, seed, most=translation))

    def change(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        for number, one in enumerate(changes):
            images = one(images, tf.random.fold_in(seed, number))  # each kind draws for itself
        return images

    return change


def mirrored(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Half of the images, by chance, mirrored left to right."""
    return tf.where(_draw(images, seed, 2)[:, None, None, None] == 1, images[:, :, ::-1], images)


def shifted(images: tf.Tensor, seed: tf.Tensor, *, most: int) -> tf.Tensor:
    """Each image moved by -most to +most pixels down and, apart, across; what comes in is reflected at the edge.

    `most` is less than the height and the width.
    """
    height, width = images.shape[1], images.shape[2]
    padded = tf.pad(images, [[0, 0], [most, most], [most, most], [0, 0]], mode="REFLECT")
    down, across = (_draw(images, tf.random.fold_in(seed, axis), 2 * most + 1) for axis in range(2))  # (b,) each
    rows = down[:, None] + tf.range(height)[None]  # (b, h)
    columns = across[:, None] + tf.range(width)[None]  # (b, w)
    moved = tf.gather(padded, rows, axis=1, batch_dims=1)  # (b, h, w + 2 most, c)
    return tf.gather(moved, columns, axis=2, batch_dims=1)  # (b, h, w, c)


def _draw(images: tf.Tensor, seed: tf.Tensor, outcomes: int) -> tf.Tensor:
    """A number from 0 to outcomes - 1 for each image: (b,) int32."""
    return tf.random.stateless_uniform([tf.shape(images)[0]], seed, 0, outcomes, dtype=tf.int32)
