"""Two images in one, with as much of each one's label."""

import tensorflow as tf

from pipeline.data.augmentation.random_ops import beta, box_mask, randint, select, uniform

ImagesAndLabels = tuple[tf.Tensor, tf.Tensor]  # images (b, h, w, c) and the share of each that is its own, (b,)


def mixup_or_cutmix(
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: tf.Tensor,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    probability: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """So many of the images with another one in them, by mixup or cutmix; the labels (b, classes) in the same shares.

    Where both alphas are above 0, an image gets the one or the other, as likely. The other image is the next of the
    batch, which comes shuffled; the last one's is the first.
    """
    seeds = [tf.random.fold_in(seed, number) for number in range(4)]
    ways = []
    if mixup_alpha:
        ways.append(mixup(images, seeds[0], alpha=mixup_alpha))
    if cutmix_alpha:
        ways.append(cutmix(images, seeds[1], alpha=cutmix_alpha))
    way = randint(images, seeds[2], len(ways))
    (changed, share), (other, other_share) = ways[0], ways[-1]
    changed = select(way == 0, changed, other)
    is_mixed = uniform(images, seeds[3]) < probability
    share = tf.where(is_mixed, tf.where(way == 0, share, other_share), 1.0)[:, None]
    return select(is_mixed, changed, images), share * labels + (1 - share) * _next(labels)


def mixup(images: tf.Tensor, seed: tf.Tensor, *, alpha: float) -> ImagesAndLabels:
    """Each image faded into the next: Beta(alpha, alpha) of it is its own (Zhang et al. 2018, arXiv 1710.09412)."""
    share = beta(images, seed, alpha)
    own, other = (tf.cast(each, tf.float32) for each in (images, _next(images)))
    faded = other + share[:, None, None, None] * (own - other)
    return tf.cast(tf.round(faded), images.dtype), share


def cutmix(images: tf.Tensor, seed: tf.Tensor, *, alpha: float) -> ImagesAndLabels:
    """Each image, with a rectangle of the next in its place: 1 - Beta(alpha, alpha) of the area before it is cut off.

    It has the image's own proportions, its middle may be anywhere, and what lies outside is cut off; the share is what
    then is left of the image (Yun et al. 2019, arXiv 1905.04899, appendix A).
    """
    side = tf.sqrt(1 - beta(images, tf.random.fold_in(seed, 0), alpha))  # (b,) of the image's
    height, width = (tf.cast(side * images.shape[axis], tf.int32) for axis in (1, 2))
    row, column = (randint(images, tf.random.fold_in(seed, axis), images.shape[axis]) for axis in (1, 2))
    cut = box_mask(images, top=row - height // 2, left=column - width // 2, height=height, width=width)
    return tf.where(cut, _next(images), images), 1 - tf.reduce_mean(tf.cast(cut, tf.float32), axis=[1, 2, 3])


def _next(batch: tf.Tensor) -> tf.Tensor:
    return tf.roll(batch, -1, axis=0)
