"""Augmentations that are off unless enabled, and images to augment."""

import numpy as np
import tensorflow as tf

from pipeline.config.training import AugmentationConfig
from pipeline.data.augmentation import registry

ALL = {
    "crop_scale": 0.2,
    "flip": True,
    "vertical_flip": True,
    "translation": 2,
    "randaugment_layers": 2,
    "color_jitter": 0.3,
    "random_erasing": 0.5,
    "cutout": 3,
    "mixup_alpha": 0.4,
    "cutmix_alpha": 1.0,
}
SEED = tf.constant([1, 2], tf.int64)


def build_augmentation(*, clean=False, for_xla=False, **settings):
    """Build the augmentation of these settings, with a RandAugment magnitude that shows."""
    config = AugmentationConfig(randaugment_magnitude=12, **settings)
    return registry.build_augmentation(config, clean=clean, for_xla=for_xla)


def noise(*shape, seed=0):
    """Return random pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(count, height, width, channels, seed=0):
    """Return random gradients, (count, height, width, channels): as in photographs, neighbouring pixels are similar."""
    ends = np.random.default_rng(seed).uniform(0, 255, (4, count, 1, 1, channels))
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j][:, None, :, :, None]
    top, bottom = ends[0] + (ends[1] - ends[0]) * across, ends[2] + (ends[3] - ends[2]) * across
    return (top + (bottom - top) * down).astype(np.uint8)
