"""Random numbers for each image of a batch."""

import numpy as np
import pytest
import tensorflow as tf

from pipeline.data.augmentation.random_ops import (
    beta,
    box_mask,
    randint,
    record_draws,
    replay_draws,
    select,
    uniform,
)
from tests.support.augmentations import SEED, noise

IMAGES = tf.zeros((6000, 1, 1, 1), tf.uint8)


def test_box_mask_marks_each_images_rectangle_and_cuts_what_lies_outside():
    boxes = {"top": [1, -1, 3], "left": [0, 2, 3], "height": [2, 2, 9], "width": [3, 1, 0]}
    masks = box_mask(tf.zeros((3, 4, 5, 1)), **{name: tf.constant(values) for name, values in boxes.items()})
    expected = np.zeros((3, 4, 5, 1), bool)
    expected[0, 1:3, 0:3] = expected[1, 0:1, 2:3] = True
    np.testing.assert_array_equal(masks, expected)


def test_randint_draws_each_integer_below_the_bound_equally_often():
    counts = np.bincount(randint(IMAGES, SEED, 3))
    assert len(counts) == 3 and np.abs(counts - 2000).max() < 5 * np.sqrt(2000)


def test_uniform_draws_numbers_between_low_and_high():
    numbers = uniform(IMAGES, SEED, 2.0, 4.0).numpy()
    assert numbers.shape == (6000,) and 2 <= numbers.min() < 2.01 and 3.99 < numbers.max() < 4
    assert numbers.mean() == pytest.approx(3, abs=0.04)


# With float32, one of six pairs of gammas would underflow at 0.01.
@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 5.0])
def test_beta_has_the_mean_and_variance_of_its_distribution(alpha):
    shares = beta(IMAGES, SEED, alpha).numpy()
    assert shares.dtype == np.float32 and shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


@pytest.mark.parametrize(
    "draw", [lambda s: randint(IMAGES, s, 9), lambda s: uniform(IMAGES, s), lambda s: beta(IMAGES, s, 1)]
)
def test_draws_depend_on_the_seed_alone(draw):
    np.testing.assert_array_equal(draw(SEED), draw(SEED))
    assert not np.array_equal(draw(SEED), draw(SEED + 1))


def test_select_takes_whole_images_by_condition():
    images, others = noise(3, 2, 2, 3), noise(3, 2, 2, 3, seed=1)
    selected = select(tf.constant([True, False, True]), tf.constant(images), tf.constant(others)).numpy()
    np.testing.assert_array_equal(selected, np.stack([images[0], others[1], images[2]]))


def test_recorded_draws_are_replayed_in_their_order_and_not_drawn():
    with record_draws(tf.constant(len(IMAGES))) as drawn:
        expected = [randint(IMAGES, SEED, 9), uniform(IMAGES, SEED), beta(IMAGES, SEED, 1.0)]
    with replay_draws(drawn):
        again = [randint(IMAGES, SEED + 1, 9), uniform(IMAGES, SEED + 1), beta(IMAGES, SEED + 1, 1.0)]
    for numbers, same in zip(again, expected, strict=True):
        np.testing.assert_array_equal(numbers, same)
    assert not np.array_equal(uniform(IMAGES, SEED + 1), expected[1]), "outside the block they are drawn again"
