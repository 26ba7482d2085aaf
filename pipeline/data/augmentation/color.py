"""Changes of the colours of images (n, h, w, c) uint8, computed as Pillow does; alpha channels stay as they are.

Factors are one number, or one for each image, (n,); a factor of 1 leaves an image as it is.
"""

from collections.abc import Callable

import tensorflow as tf

from pipeline.data.augmentation.random_ops import uniform


def color_jitter(images: tf.Tensor, seed: tf.Tensor, *, strength: float) -> tf.Tensor:
    """Scale brightness, contrast and saturation, in turn, each by a random factor from 1 - strength to 1 + strength."""
    for number, scale in enumerate((brightness, contrast, saturation)):
        images = scale(images, uniform(images, tf.random.fold_in(seed, number), 1 - strength, 1 + strength))
    return images


def brightness(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blend images with black (factor below 1), or move them away from it (above 1)."""
    return _blend(images, tf.zeros_like(images[:, :1, :1, :1]), factor)


def contrast(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blend each image with its mean gray (factor below 1), or move it away from it (above 1)."""
    pixels = images.shape[1] * images.shape[2]
    total = tf.reduce_sum(tf.cast(_gray(images), tf.int64), axis=[1, 2, 3], keepdims=True)
    mean = (total + pixels // 2) // pixels
    return _blend(images, mean, factor)


def saturation(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blend each pixel with its gray (factor below 1), or move it away from it (above 1)."""
    return _blend(images, _gray(images), factor) if images.shape[3] > 1 else images


def sharpness(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blend each image with its smoothed copy (factor below 1), or move it away from it (above 1); edge pixels stay."""
    height, width = images.shape[1], images.shape[2]
    if min(height, width) < 3:
        return images
    x = tf.cast(images, tf.int32)
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]  # (n, h - 2, w - 2, c)
    # Pillow's SMOOTH kernel: 5 in the middle, 1 around it.
    smooth = (sums + 4 * x[:, 1:-1, 1:-1] + 6) // 13
    edge = [[0, 0], [1, 1], [1, 1], [0, 0]]
    inner = tf.pad(tf.ones_like(smooth, tf.bool), edge)
    return _blend(images, tf.where(inner, tf.pad(smooth, edge), x), factor)


def posterize(images: tf.Tensor, bits: int) -> tf.Tensor:
    """Keep only the highest bits of each value."""
    return _on_colors(images, lambda x: tf.bitwise.bitwise_and(x, tf.constant(256 - 2 ** (8 - bits), tf.uint8)))


def solarize(images: tf.Tensor, threshold: int) -> tf.Tensor:
    """Invert all values from the threshold on."""
    return _on_colors(images, lambda x: tf.where(tf.cast(x, tf.int32) >= threshold, 255 - x, x))


def auto_contrast(images: tf.Tensor) -> tf.Tensor:
    """Stretch each channel to the range 0 to 255; a channel of one value stays."""

    def stretch(x: tf.Tensor) -> tf.Tensor:
        value = tf.cast(x, tf.int32)
        low, high = (end(value, axis=[1, 2], keepdims=True) for end in (tf.reduce_min, tf.reduce_max))
        return tf.where(high > low, tf.cast((value - low) * 255 // tf.maximum(high - low, 1), tf.uint8), x)

    return _on_colors(images, stretch)


def equalize(images: tf.Tensor) -> tf.Tensor:
    """Equalize the histogram of each channel."""

    def spread(x: tf.Tensor) -> tf.Tensor:
        flat = tf.reshape(tf.transpose(tf.cast(x, tf.int32), [0, 3, 1, 2]), [-1, x.shape[1] * x.shape[2]])  # (n c, h w)
        # not tf.math.bincount, which computes the 256 from the data for XLA to fail on
        counts = tf.raw_ops.DenseBincount(input=flat, size=256, weights=tf.constant([], tf.int32))  # (n c, 256)
        last = tf.gather(counts, tf.reduce_max(flat, axis=1), batch_dims=1)
        step = ((flat.shape[1] - last) // 255)[:, None]
        table = (tf.cumsum(counts, axis=1, exclusive=True) + step // 2) // tf.maximum(step, 1)
        equal = tf.where(step > 0, tf.gather(tf.minimum(table, 255), flat, batch_dims=1), flat)
        return tf.transpose(tf.reshape(tf.cast(equal, tf.uint8), [-1, x.shape[3], *x.shape[1:3]]), [0, 2, 3, 1])

    return _on_colors(images, spread)


def _on_colors(images: tf.Tensor, function: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Apply a function to all channels but alpha."""
    if images.shape[3] < 4:
        return function(images)
    return tf.concat([function(images[..., :3]), images[..., 3:]], axis=3)


def _gray(images: tf.Tensor) -> tf.Tensor:
    """Return the luminance, (n, h, w, 1) int32: ITU-R 601-2 as Pillow computes it."""
    x = tf.cast(images, tf.int32)
    if images.shape[3] == 1:
        return x
    return (x[..., 0:1] * 19595 + x[..., 1:2] * 38470 + x[..., 2:3] * 7471 + 32768) // 65536


def _blend(images: tf.Tensor, other: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Interpolate from `other` (factor 0) to `images` (1), or beyond; clip to 0 and 255 and round down as Pillow."""
    factor = tf.reshape(tf.cast(factor, tf.float32), [-1, 1, 1, 1])

    def blend(x: tf.Tensor) -> tf.Tensor:
        start = tf.cast(other, tf.float32)
        start = start[..., :3] if start.shape[3] > 3 else start
        return tf.cast(tf.clip_by_value(start + factor * (tf.cast(x, tf.float32) - start), 0, 255), tf.uint8)

    return _on_colors(images, blend)
