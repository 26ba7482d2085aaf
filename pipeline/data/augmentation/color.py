"""Changes of images' colours (n, h, w, c) uint8, as Pillow makes them; an alpha channel keeps its values.

A factor of 1 leaves an image as it is; it is one number, or one an image, (n,).
"""

from collections.abc import Callable

import tensorflow as tf

from pipeline.data.augmentation.random_ops import uniform


def color_jitter(images: tf.Tensor, seed: tf.Tensor, *, most: float) -> tf.Tensor:
    """Brightness, contrast and saturation, in turn, each times a factor of its own from 1 - most to 1 + most."""
    for number, change in enumerate((brightness, contrast, saturation)):
        images = change(images, uniform(images, tf.random.fold_in(seed, number), 1 - most, 1 + most))
    return images


def brightness(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Away from black, or towards it."""
    return _blended(images, tf.zeros_like(images[:, :1, :1, :1]), factor)


def contrast(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Away from the image's mean gray, or towards it."""
    pixels = images.shape[1] * images.shape[2]
    total = tf.reduce_sum(tf.cast(_gray(images), tf.int64), axis=[1, 2, 3], keepdims=True)
    mean = (total + pixels // 2) // pixels
    return _blended(images, mean, factor)


def saturation(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Away from each pixel's gray, or towards it."""
    return _blended(images, _gray(images), factor) if images.shape[3] > 1 else images


def sharpness(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Away from the smoothed image, or towards it; the outermost pixels stay."""
    height, width = images.shape[1], images.shape[2]
    if min(height, width) < 3:
        return images
    x = tf.cast(images, tf.int32)
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    nine = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]  # (n, h - 2, w - 2, c)
    smooth = (nine + 4 * x[:, 1:-1, 1:-1] + 6) // 13  # Pillow's SMOOTH: 5 in the middle, 1 around it
    edge = [[0, 0], [1, 1], [1, 1], [0, 0]]
    inner = tf.pad(tf.ones_like(smooth, tf.bool), edge)
    return _blended(images, tf.where(inner, tf.pad(smooth, edge), x), factor)


def posterize(images: tf.Tensor, bits: int) -> tf.Tensor:
    """The highest bits of each value alone."""
    return _on_colors(images, lambda x: tf.bitwise.bitwise_and(x, tf.constant(256 - 2 ** (8 - bits), tf.uint8)))


def solarize(images: tf.Tensor, threshold: int) -> tf.Tensor:
    """Values from the threshold on inverted."""
    return _on_colors(images, lambda x: tf.where(tf.cast(x, tf.int32) >= threshold, 255 - x, x))


def auto_contrast(images: tf.Tensor) -> tf.Tensor:
    """Each channel stretched to all of 0 to 255; a channel of one value stays."""

    def stretched(x: tf.Tensor) -> tf.Tensor:
        value = tf.cast(x, tf.int32)
        low, high = (end(value, axis=[1, 2], keepdims=True) for end in (tf.reduce_min, tf.reduce_max))
        return tf.where(high > low, tf.cast((value - low) * 255 // tf.maximum(high - low, 1), tf.uint8), x)

    return _on_colors(images, stretched)


def equalize(images: tf.Tensor) -> tf.Tensor:
    """Each channel's values spread so that each is about as frequent."""

    def spread(x: tf.Tensor) -> tf.Tensor:
        flat = tf.reshape(tf.transpose(tf.cast(x, tf.int32), [0, 3, 1, 2]), [-1, x.shape[1] * x.shape[2]])  # (n c, h w)
        counts = tf.math.bincount(flat, minlength=256, maxlength=256, axis=-1)  # (n c, 256)
        last = tf.gather(counts, tf.reduce_max(flat, axis=1), batch_dims=1)
        step = ((flat.shape[1] - last) // 255)[:, None]
        table = (tf.cumsum(counts, axis=1, exclusive=True) + step // 2) // tf.maximum(step, 1)
        equal = tf.where(step > 0, tf.gather(tf.minimum(table, 255), flat, batch_dims=1), flat)
        return tf.transpose(tf.reshape(tf.cast(equal, tf.uint8), [-1, x.shape[3], *x.shape[1:3]]), [0, 2, 3, 1])

    return _on_colors(images, spread)


def _on_colors(images: tf.Tensor, change: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    if images.shape[3] < 4:
        return change(images)
    return tf.concat([change(images[..., :3]), images[..., 3:]], axis=3)


def _gray(images: tf.Tensor) -> tf.Tensor:
    """Luminance in whole numbers, (n, h, w, 1) int32: ITU-R 601-2 as Pillow computes it."""
    x = tf.cast(images, tf.int32)
    if images.shape[3] == 1:
        return x
    return (x[..., 0:1] * 19595 + x[..., 1:2] * 38470 + x[..., 2:3] * 7471 + 32768) // 65536


def _blended(images: tf.Tensor, ground: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """From the ground (0) by the image (1) and beyond, cut off at 0 and 255 and rounded down as Pillow does."""
    factor = tf.reshape(tf.cast(factor, tf.float32), [-1, 1, 1, 1])

    def blend(x: tf.Tensor) -> tf.Tensor:
        low = tf.cast(ground, tf.float32)
        low = low[..., :3] if low.shape[3] > 3 else low
        return tf.cast(tf.clip_by_value(low + factor * (tf.cast(x, tf.float32) - low), 0, 255), tf.uint8)

    return _on_colors(images, blend)
