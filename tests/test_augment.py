"""Changes of training images: what they do, and that they can be done again."""

import numpy as np
import tensorflow as tf

from pipeline.augment import augmentation, mirrored, shifted

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 6, 5, 3), dtype=np.uint8)
SEED = tf.constant([1, 2], tf.int64)


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


def test_the_same_seed_changes_the_same_images_alike_and_another_does_not():
    change = augmentation(flip=True, translation=1)
    first, again, other = (
        change(tf.constant(IMAGES), tf.constant(seed, tf.int64)) for seed in ([1, 2], [1, 2], [1, 3])
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_each_kind_draws_for_itself():
    changed = augmentation(flip=True, translation=1)(tf.constant(IMAGES), SEED)
    first, second = (tf.random.fold_in(SEED, number) for number in range(2))
    apart = shifted(mirrored(tf.constant(IMAGES), first), second, most=1)
    together = shifted(mirrored(tf.constant(IMAGES), first), first, most=1)
    np.testing.assert_array_equal(changed, apart)
    assert not np.array_equal(changed, together)
    assert changed.shape == IMAGES.shape and changed.dtype == tf.uint8


def test_nothing_on_changes_nothing():
    np.testing.assert_array_equal(augmentation(flip=False, translation=0)(tf.constant(IMAGES), SEED), IMAGES)
