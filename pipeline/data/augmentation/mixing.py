"""Mixup and cutmix: two images in one, and their labels in the same shares."""

import tensorflow as tf

from pipeline.data.augmentation.random_ops import beta, box_mask, randint, select, uniform

ImagesAndShares = tuple[tf.Tensor, tf.Tensor]  # images (b, h, w, c), and the share of each that is its own, (b,)


def mixup_or_cutmix(
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: tf.Tensor,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    probability: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mix each image with another by mixup or cutmix with the given probability, and the labels in the same shares.

    If both alphas are above 0, each image gets one or the other, equally likely. The other image is the next one of the
    batch, which is shuffled already; for the last it is the first.

    Returns:
        Images (b, h, w, c) and labels (b, classes).
    """
    seeds = [tf.random.fold_in(seed, number) for number in range(4)]
    candidates = []
    if mixup_alpha:
        candidates.append(mixup(images, seeds[0], alpha=mixup_alpha))
    if cutmix_alpha:
        candidates.append(cutmix(images, seeds[1], alpha=cutmix_alpha))
    choice = randint(images, seeds[2], len(candidates))
    (first, first_share), (last, last_share) = candidates[0], candidates[-1]
    mixed = select(choice == 0, first, last)
    is_mixed = uniform(images, seeds[3]) < probability
    share = tf.where(is_mixed, tf.where(choice == 0, first_share, last_share), 1.0)[:, None]
    return select(is_mixed, mixed, images), share * labels + (1 - share) * _next(labels)


def mixup(images: tf.Tensor, seed: tf.Tensor, *, alpha: float) -> ImagesAndShares:
    """Blend each image with the next (Zhang et al. 2018, arXiv 1710.09412).

    The image's own share is drawn from Beta(alpha, alpha).
    """
    share = beta(images, seed, alpha)
    own, other = (tf.cast(each, tf.float32) for each in (images, _next(images)))
    blended = other + share[:, None, None, None] * (own - other)
    return tf.cast(tf.round(blended), images.dtype), share


def cutmix(images: tf.Tensor, seed: tf.Tensor, *, alpha: float) -> ImagesAndShares:
    """Replace a rectangle of each image by the same part of the next (Yun et al. 2019, arXiv 1905.04899, appendix A).

    The rectangle has the image's aspect ratio, 1 - Beta(alpha, alpha) of its area, and any pixel as its center. What
    lies outside the image is cut off; the share returned is what is left of the image after that.
    """
    side = tf.sqrt(1 - beta(images, tf.random.fold_in(seed, 0), alpha))  # (b,), as a share of the image's side
    height, width = (tf.cast(side * images.shape[axis], tf.int32) for axis in (1, 2))
    row, column = (randint(images, tf.random.fold_in(seed, axis), images.shape[axis]) for axis in (1, 2))
    cut = box_mask(images, top=row - height // 2, left=column - width // 2, height=height, width=width)
    return tf.where(cut, _next(images), images), 1 - tf.reduce_mean(tf.cast(cut, tf.float32), axis=[1, 2, 3])


def _next(batch: tf.Tensor) -> tf.Tensor:
    """Return the next element for each element of a batch; the first for the last."""
    return tf.roll(batch, -1, axis=0)
