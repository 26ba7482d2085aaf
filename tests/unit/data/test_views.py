"""Views over which predictions are averaged."""

import numpy as np
import tensorflow as tf

from pipeline.data.views import VIEWS, mirror, shift

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4, 1)


def test_mirror_exchanges_left_and_right():
    np.testing.assert_array_equal(mirror(IMAGES)[0, 0, :, 0], [3, 2, 1, 0])


def test_shift_moves_the_upper_left_pixel_and_reflects_the_edges():
    moved = shift(tf.constant(IMAGES), 1)
    np.testing.assert_array_equal(moved[:, 1:, 1:], IMAGES[:, :-1, :-1])
    np.testing.assert_array_equal(moved[:, 0, 1:], IMAGES[:, 1, :-1])
    np.testing.assert_array_equal(shift(tf.constant(IMAGES), -1)[:, :-1, :-1], IMAGES[:, 1:, 1:])


def test_views_of_each_name_differ_from_the_image_and_from_one_another():
    for views in VIEWS.values():
        pixels = [IMAGES.tobytes(), *(view(tf.constant(IMAGES)).numpy().tobytes() for view in views)]
        assert len(set(pixels)) == len(pixels)
    assert {name: len(views) + 1 for name, views in VIEWS.items()} == {"one": 1, "mirrored": 2, "shifted": 6}
