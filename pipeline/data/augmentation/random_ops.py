"""Random numbers for each image of a batch, functions of a seed (2,) alone, and operations that use them.

XLA draws other numbers from a seed than TensorFlow does (2.21). What it compiles takes numbers that were drawn before.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import tensorflow as tf

Draw = Callable[[tf.Tensor], tf.Tensor]  # number of images -> random numbers

# what is called in place of each draw within `record_draws` and `replay_draws`
_source: ContextVar[Callable[[Draw], tf.Tensor] | None] = ContextVar("_source", default=None)


@contextmanager
def record_draws(count: tf.Tensor) -> Iterator[list[tf.Tensor]]:
    """Yield a list to which all random numbers are appended that are drawn within the block.

    Args:
        count: Number of images in the batch, so that drawing in a graph does not depend on images.
    """
    drawn: list[tf.Tensor] = []

    def draw_and_record(draw: Draw) -> tf.Tensor:
        drawn.append(draw(count))
        return drawn[-1]

    token = _source.set(draw_and_record)
    try:
        yield drawn
    finally:
        _source.reset(token)


@contextmanager
def replay_draws(drawn: Sequence[tf.Tensor]) -> Iterator[None]:
    """Draw no random numbers within the block, but take these, which the same calls have drawn in this order."""
    numbers = iter(drawn)
    token = _source.set(lambda _: next(numbers))
    try:
        yield
    finally:
        _source.reset(token)


def _draw(images: tf.Tensor, draw: Draw) -> tf.Tensor:
    source = _source.get()
    return source(draw) if source else draw(tf.shape(images)[0])


def box_mask(images: tf.Tensor, *, top: tf.Tensor, left: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Return which pixels lie in their image's rectangle, (b, h, w, 1) bool; parts of it may lie outside the image.

    Args:
        top: First row of each rectangle, like the others (b,) int32 in pixels.
    """
    rows = tf.range(images.shape[1])[None] - top[:, None]  # (b, h)
    columns = tf.range(images.shape[2])[None] - left[:, None]  # (b, w)
    down = (rows >= 0) & (rows < height[:, None])
    across = (columns >= 0) & (columns < width[:, None])
    return (down[:, :, None] & across[:, None, :])[..., None]


def randint(images: tf.Tensor, seed: tf.Tensor, bound: int) -> tf.Tensor:
    """Draw an integer from 0 to bound - 1 for each image, (b,) int32."""
    return _draw(images, lambda count: tf.random.stateless_uniform([count], seed, 0, bound, dtype=tf.int32))


def uniform(images: tf.Tensor, seed: tf.Tensor, low: float = 0.0, high: float = 1.0) -> tf.Tensor:
    """Draw a number from [low, high) for each image, (b,) float32."""
    return _draw(images, lambda count: tf.random.stateless_uniform([count], seed, low, high))


def uniforms(images: tf.Tensor, seed: tf.Tensor, tries: int) -> tf.Tensor:
    """Draw `tries` numbers from [0, 1) for each image, (b, tries) float32."""
    return _draw(images, lambda count: tf.random.stateless_uniform([count, tries], seed))


def scale_to_int(uniform: tf.Tensor, maximum: tf.Tensor) -> tf.Tensor:
    """Turn numbers from [0, 1) into integers from 0 to `maximum`, each equally likely."""
    return tf.cast(uniform * tf.cast(maximum + 1, tf.float32), tf.int32)


def select(condition: tf.Tensor, images: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Return each of `images` (b, h, w, c) where `condition` (b,) is true, else the image of `others`."""
    # tf.where takes three times as long.
    return tf.raw_ops.Select(condition=condition, x=images, y=others)


def beta(images: tf.Tensor, seed: tf.Tensor, alpha: float) -> tf.Tensor:
    """Draw a number from Beta(alpha, alpha) for each image, (b,) float32."""

    def draw(count: tf.Tensor) -> tf.Tensor:
        gammas = tf.random.stateless_gamma([2, count], seed, alpha, dtype=tf.float64)
        # With a tiny alpha both underflow to 0: the result is 1.
        share = tf.where(gammas[0] == gammas[1], tf.ones_like(gammas[0]), gammas[0] / (gammas[0] + gammas[1]))
        return tf.cast(share, tf.float32)

    return _draw(images, draw)
