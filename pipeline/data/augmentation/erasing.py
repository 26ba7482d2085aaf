"""A rectangle of each image painted over with the batch's mean colour."""

import math

import tensorflow as tf

from pipeline.data.augmentation.random_ops import box_mask, randint, select, uniform

AREA = (0.02, 0.33)  # of the image, and height to width: random erasing as in torchvision and timm
RATIO = (0.3, 3.3)


def random_erasing(images: tf.Tensor, seed: tf.Tensor, *, probability: float) -> tf.Tensor:
    """So many of the images with a rectangle of any place, size and shape erased.

    Random erasing (Zhong et al. 2020, arXiv 1708.04896). A side that would be longer than the image's is cut to it.
    """
    most_high, most_wide = images.shape[1], images.shape[2]
    which, size, shape, down, across = (uniform(images, tf.random.fold_in(seed, number)) for number in range(5))
    area = (AREA[0] + (AREA[1] - AREA[0]) * size) * (most_high * most_wide)  # (b,) pixels
    ratio = tf.exp(math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * shape)
    height = tf.minimum(tf.cast(tf.round(tf.sqrt(area * ratio)), tf.int32), most_high)
    width = tf.minimum(tf.cast(tf.round(tf.sqrt(area / ratio)), tf.int32), most_wide)
    top, left = _part(down, most_high - height), _part(across, most_wide - width)
    erased = box_mask(images, top=top, left=left, height=height, width=width)
    return select(which < probability, _painted(images, erased), images)


def cutout(images: tf.Tensor, seed: tf.Tensor, *, side: int) -> tf.Tensor:
    """Each image with a square of so many pixels a side erased, of which parts may lie outside.

    Cutout (DeVries & Taylor 2017, arXiv 1708.04552): the middle is any pixel of the image.
    """
    row, column = (randint(images, tf.random.fold_in(seed, axis), images.shape[1 + axis]) for axis in range(2))
    sides = tf.fill(tf.shape(row), side)
    return _painted(images, box_mask(images, top=row - side // 2, left=column - side // 2, height=sides, width=sides))


def _part(share: tf.Tensor, most: tf.Tensor) -> tf.Tensor:
    """A whole number from 0 to most, each as likely, of a share from 0 to below 1."""
    return tf.cast(share * tf.cast(most + 1, tf.float32), tf.int32)


def _painted(images: tf.Tensor, erased: tf.Tensor) -> tf.Tensor:
    total = tf.reduce_sum(tf.cast(images, tf.int64), axis=[0, 1, 2])  # (c,), exact in any order of summing
    pixels = tf.cast(tf.maximum(tf.size(images[..., 0]), 1), tf.int64)
    return tf.where(erased, tf.cast(total // pixels, images.dtype), images)
