"""All augmentations together: reproducible, for images of every kind."""

import numpy as np
import pytest
import tensorflow as tf

from pipeline.data.augmentation.geometric import random_flip, random_translation
from pipeline.data.augmentation.mixing import mixup_or_cutmix
from tests.support.augmentations import ALL, SEED, build_augmentation, noise, smooth

IMAGES = noise(64, 6, 5, 3)
LABELS = np.eye(10, dtype=np.float32)[np.arange(64) % 10]


def apply(augment, seed=SEED, images=IMAGES, labels=LABELS):
    return [part.numpy() for part in augment(tf.constant(images), tf.constant(labels), tf.constant(seed, tf.int64))]


@pytest.mark.parametrize("on", [{name: value} for name, value in ALL.items()] + [ALL], ids=str)
def test_augmentation_is_a_function_of_the_seed(on):
    first, again, other = (apply(build_augmentation(**on), seed) for seed in ([1, 2], [1, 2], [1, 3]))
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("shape", [(9, 8, 8, 1), (9, 12, 6, 3), (9, 6, 12, 4), (1, 8, 8, 3)], ids=str)
def test_all_augmentations_keep_shape_and_type_of_grayscale_rgb_and_rgba(shape):
    images, labels = apply(build_augmentation(**ALL), images=smooth(*shape), labels=LABELS[: shape[0]])
    assert images.shape == shape and images.dtype == np.uint8
    assert labels.shape == (shape[0], 10) and labels.dtype == np.float32
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-6)
    assert not np.array_equal(images, smooth(*shape))


def test_each_augmentation_draws_its_own_random_numbers():
    images, _ = apply(build_augmentation(flip=True, translation=1))
    first, second = (tf.random.fold_in(SEED, number) for number in range(2))
    np.testing.assert_array_equal(
        images, random_translation(random_flip(tf.constant(IMAGES), first), second, max_pixels=1)
    )
    assert not np.array_equal(images, random_translation(random_flip(tf.constant(IMAGES), first), first, max_pixels=1))


def test_mixing_draws_other_random_numbers_than_the_augmentation_before():
    images, labels = apply(build_augmentation(flip=True, mixup_alpha=1.0))
    seeds = [tf.random.fold_in(SEED, number) for number in range(2)]
    flipped = random_flip(tf.constant(IMAGES), seeds[0])
    expected = mixup_or_cutmix(
        flipped, tf.constant(LABELS), seeds[1], mixup_alpha=1.0, cutmix_alpha=0.0, probability=1.0
    )
    np.testing.assert_array_equal(images, expected[0])
    np.testing.assert_array_equal(labels, expected[1])


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("mixup_alpha", "cutmix_alpha")])
def test_image_augmentations_leave_labels_unchanged(name):
    images, labels = apply(build_augmentation(**{name: ALL[name]}))
    assert not np.array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_augmentation_with_everything_off_changes_nothing():
    images, labels = apply(build_augmentation())
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)
