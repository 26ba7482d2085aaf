"""Affine transformations against Pillow's."""

import numpy as np
import pytest
import tensorflow as tf
from changes import noise
from PIL import Image

from pipeline.augmentations import geometry

IMAGES = noise(2, 9, 13, 3)
MATRICES = {
    "unchanged": geometry.unchanged(),
    "sheared across": geometry.sheared(0.23, 0),
    "sheared down": geometry.sheared(0, -0.23),
    "translated": geometry.translated(2, -3),
    "rotated": geometry.rotated(17, height=9, width=13),
    "composed": geometry.sheared(0.23, 0) @ geometry.rotated(-17, height=9, width=13),
}


@pytest.mark.parametrize("name", MATRICES)
def test_pixels_come_from_where_pillow_takes_them(name):
    matrix = MATRICES[name]
    found = geometry.warped(tf.constant(IMAGES), tf.constant(np.stack([matrix, np.eye(3, dtype=np.float32)]))).numpy()
    pillow = Image.fromarray(IMAGES[0]).transform((13, 9), Image.Transform.AFFINE, matrix[:2].ravel().tolist())
    np.testing.assert_array_equal(found[0], pillow)
    np.testing.assert_array_equal(found[1], IMAGES[1])


def test_a_quarter_turn_is_counter_clockwise():
    square = noise(1, 6, 6, 3)
    turned = geometry.warped(tf.constant(square), tf.constant(geometry.rotated(90, height=6, width=6)[None]))
    np.testing.assert_array_equal(turned, np.rot90(square, axes=(1, 2)))
