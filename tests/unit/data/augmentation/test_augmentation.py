"""The door to all changes of training images: that they can be done again, and for which images."""

import numpy as np
import pytest
import tensorflow as tf

from pipeline.data.augmentation.geometric import random_flip, random_translation
from tests.support.augmentations import ALL, SEED, build_augmentation, noise, smooth

IMAGES = noise(64, 6, 5, 3)
LABELS = np.eye(10, dtype=np.float32)[np.arange(64) % 10]


def changed(change, seed=SEED, images=IMAGES, labels=LABELS):
    return [part.numpy() for part in change(tf.constant(images), tf.constant(labels), tf.constant(seed, tf.int64))]


@pytest.mark.parametrize("on", [{name: value} for name, value in ALL.items()] + [ALL], ids=str)
def test_the_same_seed_changes_the_same_images_alike_and_another_does_not(on):
    first, again, other = (changed(build_augmentation(**on), seed) for seed in ([1, 2], [1, 2], [1, 3]))
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("shape", [(9, 8, 8, 1), (9, 12, 6, 3), (9, 6, 12, 4), (1, 8, 8, 3)], ids=str)
def test_all_changes_together_keep_shape_and_type_of_gray_colour_and_see_through_images(shape):
    images, labels = changed(build_augmentation(**ALL), images=smooth(*shape), labels=LABELS[: shape[0]])
    assert images.shape == shape and images.dtype == np.uint8
    assert labels.shape == (shape[0], 10) and labels.dtype == np.float32
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-6)
    assert not np.array_equal(images, smooth(*shape))


def test_each_kind_draws_for_itself():
    images, _ = changed(build_augmentation(flip=True, translation=1))
    first, second = (tf.random.fold_in(SEED, number) for number in range(2))
    np.testing.assert_array_equal(
        images, random_translation(random_flip(tf.constant(IMAGES), first), second, max_pixels=1)
    )
    assert not np.array_equal(images, random_translation(random_flip(tf.constant(IMAGES), first), first, max_pixels=1))


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("mixup_alpha", "cutmix_alpha")])
def test_a_change_of_images_alone_leaves_their_labels(name):
    images, labels = changed(build_augmentation(**{name: ALL[name]}))
    assert not np.array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_nothing_on_changes_nothing():
    images, labels = changed(build_augmentation())
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)
