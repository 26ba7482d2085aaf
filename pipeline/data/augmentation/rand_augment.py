"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719), with the operations and strengths of torchvision's."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from pipeline.data.augmentation import color, geometric
from pipeline.data.augmentation.random_ops import randint

MOST = 30  # the largest magnitude

Operation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def rand_augment(images: tf.Tensor, seed: tf.Tensor, *, layers: int, magnitude: int) -> tf.Tensor:
    """Each image changed by so many of the 14 operations, each drawn for it alone, up or down as likely.

    The colours change first, in the order drawn. The places that were drawn make one transformation, which comes last;
    what comes in from beyond the edges is black.

    Args:
        magnitude: 0 to 30, the same for all.
    """
    height, width = images.shape[1], images.shape[2]
    strength = magnitude / MOST
    moves, colors = _moves(strength, height, width), _colors(strength)
    path = tf.eye(3, batch_shape=[tf.shape(images)[0]])
    for layer in range(layers):
        drawn = tf.random.fold_in(seed, layer)
        operation = randint(images, tf.random.fold_in(drawn, 0), len(moves[0]) + len(colors))  # (b,), moves first
        sign = randint(images, tf.random.fold_in(drawn, 1), 2)
        images = _colored(images, tf.maximum(operation - len(moves[0]), -1), sign, colors)
        move = tf.where(operation < len(moves[0]), operation, 0)
        path = tf.matmul(path, tf.gather_nd(moves, tf.stack([sign, move], axis=1)))
    return geometric.affine_transform(images, path)


def _moves(strength: float, height: int, width: int) -> np.ndarray:
    """The operations on places, by sign: (2, 6, 3, 3); the first moves nothing."""

    def signed(amount: float) -> list[geometric.Matrix]:
        shear, move, turn = 0.3 * amount, 150 / 331 * amount, 30 * amount  # pixels a row, of the side, degrees
        return [
            geometric.identity(),
            geometric.shear(shear, 0),
            geometric.shear(0, shear),
            geometric.translate(move * width, 0),
            geometric.translate(0, move * height),
            geometric.rotate(turn, height=height, width=width),
        ]

    return np.array([signed(strength), signed(-strength)], np.float32)


def _colors(strength: float) -> list[Operation]:
    """The operations on colours, of images and each one's sign, 1 or -1."""
    most = 0.9 * strength
    return [
        lambda images, sign: color.brightness(images, 1 + most * sign),
        lambda images, sign: color.saturation(images, 1 + most * sign),
        lambda images, sign: color.contrast(images, 1 + most * sign),
        lambda images, sign: color.sharpness(images, 1 + most * sign),
        lambda images, _: color.posterize(images, bits=8 - round(4 * strength)),
        lambda images, _: color.solarize(images, threshold=round(255 * (1 - strength))),
        lambda images, _: color.auto_contrast(images),
        lambda images, _: color.equalize(images),
    ]


def _colored(images: tf.Tensor, number: tf.Tensor, sign: tf.Tensor, operations: Sequence[Operation]) -> tf.Tensor:
    """Each image by the operation of its number, none where it is -1; each is computed for its own images only."""
    group, groups = number + 1, len(operations) + 1
    places = tf.dynamic_partition(tf.range(tf.shape(images)[0]), group, groups)
    parts = tf.dynamic_partition(images, group, groups)
    signs = tf.dynamic_partition(tf.where(sign == 0, 1.0, -1.0), group, groups)
    changed = [each(part, of) for each, part, of in zip(operations, parts[1:], signs[1:], strict=True)]
    return tf.ensure_shape(tf.dynamic_stitch(places, [parts[0], *changed]), images.shape)
