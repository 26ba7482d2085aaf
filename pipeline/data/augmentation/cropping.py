"""Random resized crop: a random part of each image, enlarged to the whole (Szegedy et al. 2015, arXiv 1409.4842)."""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pipeline.data.augmentation.random_ops import scale_to_int, uniforms

# Parts drawn for each image, of which the first one that fits into it is taken, as in torchvision and timm.
TRIES = 10


class Boxes(NamedTuple):
    """A rectangle within each image, (b,) int32 each, in pixels."""

    top: tf.Tensor
    left: tf.Tensor
    height: tf.Tensor
    width: tf.Tensor


def random_resized_crop(images: tf.Tensor, seed: tf.Tensor, *, scale: float, ratio: float) -> tf.Tensor:
    """Cut a random rectangle out of each image (b, h, w, c) and resize it to (h, w), see `random_boxes`."""
    height, width = images.shape[1], images.shape[2]
    boxes = random_boxes(images, seed, height=height, width=width, scale=scale, ratio=ratio)
    return crop_and_resize(images, boxes)


def random_boxes(images: tf.Tensor, seed: tf.Tensor, *, height: int, width: int, scale: float, ratio: float) -> Boxes:
    """Draw a rectangle in each image (b, ...) as torchvision's and timm's random resized crop does.

    The share of the area is uniform in [scale, 1], the logarithm of width to height uniform in
    [-log(ratio), log(ratio)], the position uniform. If none of TRIES rectangles fits into the image, it is the largest
    one in its center with such a ratio.
    """
    area, shape, down, across = (uniforms(images, tf.random.fold_in(seed, number), TRIES) for number in range(4))
    area = (scale + (1 - scale) * area) * (height * width)  # pixels
    shape = tf.exp((2 * shape - 1) * math.log(ratio))
    heights = tf.cast(tf.round(tf.sqrt(area / shape)), tf.int32)
    widths = tf.cast(tf.round(tf.sqrt(area * shape)), tf.int32)
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first = tf.argmax(fits, axis=1)
    any_fits = tf.reduce_any(fits, axis=1)

    def chosen(drawn: tf.Tensor, otherwise: int) -> tf.Tensor:
        return tf.where(any_fits, tf.gather(drawn, first, batch_dims=1), otherwise)

    largest_height, largest_width = min(height, round(width * ratio)), min(width, round(height * ratio))
    return Boxes(
        top=chosen(scale_to_int(down, height - heights), (height - largest_height) // 2),
        left=chosen(scale_to_int(across, width - widths), (width - largest_width) // 2),
        height=chosen(heights, largest_height),
        width=chosen(widths, largest_width),
    )


def crop_and_resize(images: tf.Tensor, boxes: Boxes) -> tf.Tensor:
    """Resize a rectangle of each image (b, h, w, c) to (h, w), by Pillow's bilinear filter to within 1 of 255.

    The filter has nothing to antialias, as no rectangle is larger than its image.
    """
    rows = _interpolate(images, boxes.top, boxes.height, axis=1)
    resized = _interpolate(rows, boxes.left, boxes.width, axis=2)
    return tf.cast(tf.round(resized), images.dtype)


def _interpolate(images: tf.Tensor, start: tf.Tensor, length: tf.Tensor, *, axis: int) -> tf.Tensor:
    """Enlarge a range of an axis, `length` pixels from `start` on, (b,) each, to all of it, as float32.

    Positions are integers, in parts of an old pixel. As floats they would depend on whether TensorFlow optimizes the
    graph, where it multiplies by the rounded reciprocal of the axis' length instead of dividing by it.
    """
    pixels = images.shape[axis]
    parts = 2 * pixels  # in an old pixel
    start, length = start[:, None], length[:, None]
    centers = (2 * tf.range(pixels) + 1) * length - pixels  # (b, pixels), from the first old pixel's center on
    # Beyond the centers of its outer pixels the range goes on as it ends.
    centers = tf.clip_by_value(centers, 0, parts * (length - 1))
    low = start + centers // parts
    high = tf.minimum(low + 1, pixels - 1)
    shares = tf.constant(np.arange(parts) / parts, tf.float32)
    share = tf.gather(shares, centers % parts)
    share = tf.expand_dims(tf.expand_dims(share, -1), 3 - axis)  # (b, pixels, 1, 1) or (b, 1, pixels, 1)
    first, second = (tf.cast(tf.gather(images, each, axis=axis, batch_dims=1), tf.float32) for each in (low, high))
    return first + share * (second - first)
