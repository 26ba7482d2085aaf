"""Mirroring and shifting."""

import numpy as np
import tensorflow as tf
from changes import SEED, noise

from pipeline.augmentations.place import mirrored, shifted

IMAGES = noise(64, 6, 5, 3)


def test_about_half_of_the_images_are_mirrored_and_the_rest_left_alone():
    changed = mirrored(tf.constant(IMAGES), SEED).numpy()
    flipped = [np.array_equal(one, image[:, ::-1]) for one, image in zip(changed, IMAGES, strict=True)]
    kept = [np.array_equal(one, image) for one, image in zip(changed, IMAGES, strict=True)]
    assert all(np.array(flipped) ^ np.array(kept))
    assert 16 < sum(flipped) < 48


def windows(image, most):
    """Every view that a shift by up to `most` pixels can give, by (down, across)."""
    padded = np.pad(image, [(most, most), (most, most), (0, 0)], mode="reflect")
    height, width = image.shape[:2]
    steps = range(2 * most + 1)
    return {(i, j): padded[i : i + height, j : j + width] for i in steps for j in steps}


def test_training_images_are_shifted_both_ways_with_reflected_edges():
    changed = shifted(tf.constant(IMAGES), SEED, most=2).numpy()
    found = set()
    for one, image in zip(changed, IMAGES, strict=True):
        shifts = [shift for shift, view in windows(image, 2).items() if np.array_equal(view, one)]
        assert len(shifts) == 1
        found.update(shifts)
    assert {down for down, _ in found} == {across for _, across in found} == set(range(5))
    assert len(found) > 15  # down and across are drawn apart
