"""Random erasing and cutout: a rectangle of each image is painted over with the mean colour of the batch."""

import math

import tensorflow as tf

from pipeline.data.augmentation.random_ops import box_mask, randint, scale_to_int, select, uniform

# Ranges of random erasing, as in torchvision and timm.
AREA = (0.02, 0.33)  # share of the image
ASPECT_RATIO = (0.3, 3.3)  # height to width


def random_erasing(images: tf.Tensor, seed: tf.Tensor, *, probability: float) -> tf.Tensor:
    """Erase a rectangle of random position, size and aspect ratio from each image with the given probability.

    Random erasing (Zhong et al. 2020, arXiv 1708.04896). A side longer than the image's is cut to it.
    """
    image_height, image_width = images.shape[1], images.shape[2]
    chance, size, shape, down, across = (uniform(images, tf.random.fold_in(seed, number)) for number in range(5))
    area = (AREA[0] + (AREA[1] - AREA[0]) * size) * (image_height * image_width)  # (b,) pixels
    ratio = tf.exp(math.log(ASPECT_RATIO[0]) + math.log(ASPECT_RATIO[1] / ASPECT_RATIO[0]) * shape)
    height = tf.minimum(tf.cast(tf.round(tf.sqrt(area * ratio)), tf.int32), image_height)
    width = tf.minimum(tf.cast(tf.round(tf.sqrt(area / ratio)), tf.int32), image_width)
    top, left = scale_to_int(down, image_height - height), scale_to_int(across, image_width - width)
    erased = box_mask(images, top=top, left=left, height=height, width=width)
    return select(chance < probability, _fill_with_mean(images, erased), images)


def cutout(images: tf.Tensor, seed: tf.Tensor, *, side: int) -> tf.Tensor:
    """Erase a square of `side` pixels from each image; parts of it may lie outside.

    Cutout (DeVries & Taylor 2017, arXiv 1708.04552): the center is any pixel of the image.
    """
    row, column = (randint(images, tf.random.fold_in(seed, axis), images.shape[1 + axis]) for axis in range(2))
    sides = tf.fill(tf.shape(row), side)
    return _fill_with_mean(
        images, box_mask(images, top=row - side // 2, left=column - side // 2, height=sides, width=sides)
    )


def _fill_with_mean(images: tf.Tensor, erased: tf.Tensor) -> tf.Tensor:
    """Paint pixels where `erased` (b, h, w, 1) is true with the mean colour of the batch."""
    # Integers, so that the sum is exact in any order of summation.
    total = tf.reduce_sum(tf.cast(images, tf.int64), axis=[0, 1, 2])  # (c,)
    pixels = tf.cast(tf.maximum(tf.size(images[..., 0]), 1), tf.int64)
    return tf.where(erased, tf.cast(total // pixels, images.dtype), images)
