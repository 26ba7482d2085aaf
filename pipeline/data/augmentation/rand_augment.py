"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719), with the operations and strengths of torchvision."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from pipeline.data.augmentation import color, geometric
from pipeline.data.augmentation.random_ops import randint

MAX_MAGNITUDE = 30

Operation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def rand_augment(
    images: tf.Tensor, seed: tf.Tensor, *, layers: int, magnitude: int, for_xla: bool = False
) -> tf.Tensor:
    """Apply `layers` operations to each image, drawn for it alone from 14; the sign of each is random.

    Colour operations come first, in the order drawn. The geometric ones are composed into one transformation, which
    comes last; what enters from outside the image is black.

    Args:
        magnitude: 0 to 30, the same for all operations.
        for_xla: Use operations that XLA can compile, which are slower without it; the result is the same.
    """
    height, width = images.shape[1], images.shape[2]
    strength = magnitude / MAX_MAGNITUDE
    geometric_matrices, color_operations = _geometric_matrices(strength, height, width), _color_operations(strength)
    n_geometric = len(geometric_matrices[0])
    apply_color_operations = _select_color_operations if for_xla else _apply_color_operations
    transform = tf.eye(3, batch_shape=[tf.shape(images)[0]])
    for layer in range(layers):
        layer_seed = tf.random.fold_in(seed, layer)
        # (b,), the geometric ones first
        operation = randint(images, tf.random.fold_in(layer_seed, 0), n_geometric + len(color_operations))
        sign = randint(images, tf.random.fold_in(layer_seed, 1), 2)
        images = apply_color_operations(images, tf.maximum(operation - n_geometric, -1), sign, color_operations)
        matrix = tf.where(operation < n_geometric, operation, 0)
        transform = tf.matmul(transform, tf.gather_nd(geometric_matrices, tf.stack([sign, matrix], axis=1)))
    return geometric.affine_transform(images, transform, for_xla=for_xla)


def _geometric_matrices(strength: float, height: int, width: int) -> np.ndarray:
    """Return the matrices of the geometric operations by sign, (2, 6, 3, 3); the first is the identity."""

    def signed(amount: float) -> list[geometric.Matrix]:
        shear = 0.3 * amount  # pixels a row
        shift = 150 / 331 * amount  # share of the side
        angle = 30 * amount  # degrees
        return [
            geometric.identity(),
            geometric.shear(shear, 0),
            geometric.shear(0, shear),
            geometric.translate(shift * width, 0),
            geometric.translate(0, shift * height),
            geometric.rotate(angle, height=height, width=width),
        ]

    return np.array([signed(strength), signed(-strength)], np.float32)


def _color_operations(strength: float) -> list[Operation]:
    """Return the colour operations as functions of images and the sign of each, 1 or -1."""
    change = 0.9 * strength
    return [
        lambda images, sign: color.brightness(images, 1 + change * sign),
        lambda images, sign: color.saturation(images, 1 + change * sign),
        lambda images, sign: color.contrast(images, 1 + change * sign),
        lambda images, sign: color.sharpness(images, 1 + change * sign),
        lambda images, _: color.posterize(images, bits=8 - round(4 * strength)),
        lambda images, _: color.solarize(images, threshold=round(255 * (1 - strength))),
        lambda images, _: color.auto_contrast(images),
        lambda images, _: color.equalize(images),
    ]


def _apply_color_operations(
    images: tf.Tensor, number: tf.Tensor, sign: tf.Tensor, operations: Sequence[Operation]
) -> tf.Tensor:
    """Apply to each image the operation of its number, or none if it is -1.

    Each operation is computed for its own images only.
    """
    group, groups = number + 1, len(operations) + 1
    positions = tf.dynamic_partition(tf.range(tf.shape(images)[0]), group, groups)
    parts = tf.dynamic_partition(images, group, groups)
    signs = tf.dynamic_partition(tf.where(sign == 0, 1.0, -1.0), group, groups)
    changed = [
        operation(part, part_signs)
        for operation, part, part_signs in zip(operations, parts[1:], signs[1:], strict=True)
    ]
    return tf.ensure_shape(tf.dynamic_stitch(positions, [parts[0], *changed]), images.shape)


def _select_color_operations(
    images: tf.Tensor, number: tf.Tensor, sign: tf.Tensor, operations: Sequence[Operation]
) -> tf.Tensor:
    """Do as `_apply_color_operations`, but compute each operation for all images: XLA needs shapes that are known."""
    signs = tf.where(sign == 0, 1.0, -1.0)
    changed = images
    for position, operation in enumerate(operations):
        changed = tf.where((number == position)[:, None, None, None], operation(images, signs), changed)
    return changed
