"""Training images (b, h, w, c) and their labels -> changed images of the same shape, and their labels.

Every kind is a function of the images and a seed, a pair of integers (tf.random.Generator's state has no part in it),
so that any batch can be made again alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf

from pipeline.data.augmentation import color, erasing
from pipeline.data.augmentation.geometric import random_flip, random_translation
from pipeline.data.augmentation.mixing import mixup_or_cutmix
from pipeline.data.augmentation.rand_augment import rand_augment

Augment = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def build_augmentation(
    *,
    flip: bool,
    translation: int,
    randaugment_layers: int,
    randaugment_magnitude: int,
    color_jitter: float,
    random_erasing: float,
    cutout: int,
    mixup_alpha: float,
    cutmix_alpha: float,
    mix_probability: float,
) -> Augment:
    """The changes that are on, in turn, as a function of images, labels and a seed.

    It takes and returns images (b, h, w, c) uint8, of 1, 3 or 4 channels, and labels (b, classes) float32; the seed is
    (2,). Only mixup and cutmix change labels.
    """
    kinds: list[tuple[float, Callable, dict[str, Any]]] = [
        (flip, random_flip, {}),
        (translation, random_translation, {"most": translation}),
        (randaugment_layers, rand_augment, {"layers": randaugment_layers, "magnitude": randaugment_magnitude}),
        (color_jitter, color.color_jitter, {"most": color_jitter}),
        (random_erasing, erasing.random_erasing, {"probability": random_erasing}),
        (cutout, erasing.cutout, {"side": cutout}),
    ]
    changes = [partial(kind, **how) for is_on, kind, how in kinds if is_on]

    def change(images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        for number, one in enumerate(changes):
            images = one(images, tf.random.fold_in(seed, number))  # each kind draws for itself
        if not mixup_alpha and not cutmix_alpha:
            return images, labels
        return mixup_or_cutmix(
            images,
            labels,
            tf.random.fold_in(seed, len(changes)),
            mixup_alpha=mixup_alpha,
            cutmix_alpha=cutmix_alpha,
            probability=mix_probability,
        )

    return change
