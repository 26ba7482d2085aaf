"""Random erasing and cutout."""

import numpy as np
import pytest
import tensorflow as tf

from pipeline.data.augmentation.erasing import cutout, random_erasing
from tests.support.augmentations import SEED, noise

IMAGES = noise(400, 20, 16, 3)
MEAN = IMAGES.mean(axis=(0, 1, 2)).astype(np.uint8)


def rectangles(changed):
    """(top, left, height, width) of what was painted over in each image; None where nothing was."""
    found = []
    for one, image in zip(changed, IMAGES, strict=True):
        rows, columns = np.nonzero((one != image).any(axis=2))
        if not len(rows):
            found.append(None)
            continue
        box = (rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1)
        painted = one[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
        np.testing.assert_array_equal(painted, np.broadcast_to(MEAN, painted.shape))
        found.append(box)
    return found


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_random_erasing_fills_one_rectangle_with_the_given_probability(probability):
    found = rectangles(random_erasing(tf.constant(IMAGES), SEED, probability=probability).numpy())
    assert sum(box is not None for box in found) == pytest.approx(400 * probability, abs=40 * (probability < 1))


def test_random_erasing_varies_size_aspect_ratio_and_position():
    boxes = np.array(rectangles(random_erasing(tf.constant(IMAGES), SEED, probability=1.0).numpy()))
    top, left, height, width = boxes.T
    areas, ratios = height * width / 320, height / width
    assert 0.01 <= areas.min() < 0.04 and 0.3 < areas.max() <= 0.37  # 0.02 to 0.33, and a side rounded to pixels
    assert 0.2 < ratios.min() < 0.45 and 2.2 < ratios.max() < 5
    assert np.log(ratios).mean() == pytest.approx(0, abs=0.1)
    assert set(top + height) >= {20} and set(left + width) >= {16} and {0} <= set(top) & set(left)
    assert len(set(top)) > 15 and len(set(left)) > 12
    numbers = [areas, ratios, (top + 0.5) / (21 - height), (left + 0.5) / (17 - width)]
    assert np.abs(np.corrcoef(numbers) - np.eye(4)).max() < 0.2, "each is drawn for itself"


def test_random_erasing_erases_rectangles_of_every_size_whatever_its_probability():
    boxes = rectangles(random_erasing(tf.constant(IMAGES), SEED, probability=0.3).numpy())
    assert max(height * width for _, _, height, width in filter(None, boxes)) / 320 > 0.25


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cutout_erases_a_square_centered_at_any_pixel(side):
    top, left, height, width = np.array(rectangles(cutout(tf.constant(IMAGES), SEED, side=side).numpy())).T
    assert height.max() == width.max() == side
    assert height.min() == width.min() == (side + 1) // 2  # at a corner
    assert (set(top), set(left + width)) == (set(range(20 - side // 2)), set(range((side + 1) // 2, 17)))
    assert len(set(zip(top + height, left + width, strict=True))) > 100, "row and column are drawn apart"


def test_cutout_fills_with_the_mean_of_large_batches_without_overflow():
    white = tf.fill((40, 300, 300, 1), tf.constant(250, tf.uint8))  # more than 2**29 in all
    assert set(np.unique(cutout(white, SEED, side=50))) == {250}
