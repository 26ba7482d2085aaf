"""Flips, translations, and affine transformations against Pillow's."""

from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline.data.augmentation import geometric
from pipeline.data.augmentation.geometric import affine_transform, random_flip, random_translation, random_vertical_flip
from tests.support.augmentations import SEED, noise

IMAGES = noise(2, 9, 13, 3)
MATRICES = {
    "unchanged": geometric.identity(),
    "sheared across": geometric.shear(0.23, 0),
    "sheared down": geometric.shear(0, -0.23),
    "translated": geometric.translate(2, -3),
    "rotated": geometric.rotate(17, height=9, width=13),
    "composed": geometric.shear(0.23, 0) @ geometric.rotate(-17, height=9, width=13),
}


@pytest.mark.parametrize("name", MATRICES)
def test_affine_transform_equals_pillows(name):
    matrix = MATRICES[name]
    found = geometric.affine_transform(
        tf.constant(IMAGES), tf.constant(np.stack([matrix, np.eye(3, dtype=np.float32)]))
    ).numpy()
    pillow = Image.fromarray(IMAGES[0]).transform((13, 9), Image.Transform.AFFINE, matrix[:2].ravel().tolist())
    np.testing.assert_array_equal(found[0], pillow)
    np.testing.assert_array_equal(found[1], IMAGES[1])


def test_rotate_by_90_degrees_is_counter_clockwise():
    square = noise(1, 6, 6, 3)
    turned = geometric.affine_transform(tf.constant(square), tf.constant(geometric.rotate(90, height=6, width=6)[None]))
    np.testing.assert_array_equal(turned, np.rot90(square, axes=(1, 2)))


SMALL_IMAGES = noise(64, 6, 5, 3)


@pytest.mark.parametrize(("mirror", "axis"), [(random_flip, 2), (random_vertical_flip, 1)])
def test_random_flip_mirrors_about_half_of_the_images(mirror, axis):
    result = mirror(tf.constant(SMALL_IMAGES), SEED).numpy()
    mirrored = np.flip(SMALL_IMAGES, axis)
    flipped = [np.array_equal(one, image) for one, image in zip(result, mirrored, strict=True)]
    kept = [np.array_equal(one, image) for one, image in zip(result, SMALL_IMAGES, strict=True)]
    assert all(np.array(flipped) ^ np.array(kept))
    assert 16 < sum(flipped) < 48


def windows(image, most):
    """Every view that a shift by up to `most` pixels can give, by (down, across)."""
    padded = np.pad(image, [(most, most), (most, most), (0, 0)], mode="reflect")
    height, width = image.shape[:2]
    steps = range(2 * most + 1)
    return {(i, j): padded[i : i + height, j : j + width] for i in steps for j in steps}


def test_random_translation_shifts_both_ways_with_reflected_edges():
    result = random_translation(tf.constant(SMALL_IMAGES), SEED, max_pixels=2).numpy()
    found = set()
    for one, image in zip(result, SMALL_IMAGES, strict=True):
        shifts = [shift for shift, view in windows(image, 2).items() if np.array_equal(view, one)]
        assert len(shifts) == 1
        found.update(shifts)
    assert {down for down, _ in found} == {across for _, across in found} == set(range(5))
    assert len(found) > 15  # down and across are drawn apart


def test_affine_transform_for_xla_takes_the_pixels_of_the_other():
    random = np.random.default_rng(0)
    images = tf.constant(noise(300, 16, 12, 3))
    # quarters lead halfway between pixels
    quarters = random.integers(-8, 9, (150, 3, 3)) / 4
    matrices = tf.constant(np.concatenate([quarters, random.normal(size=(150, 3, 3))]).astype(np.float32))
    # in a graph, as TensorFlow optimizes it
    plain, for_xla = (
        tf.function(partial(affine_transform, for_xla=for_xla), autograph=False)(images, matrices)
        for for_xla in (False, True)
    )
    np.testing.assert_array_equal(for_xla, plain)
    assert 0 < np.mean(np.asarray(plain) == 0) < 0.9
