"""Random resized crop: the rectangles drawn, and their pixels against Pillow's."""

import math

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from PIL import Image

from pipeline.data.augmentation.cropping import Boxes, crop_and_resize, random_boxes, random_resized_crop
from tests.support.augmentations import SEED, noise, smooth

MANY = 20_000


def draw(count=MANY, seed=SEED, **changes):
    """Draw rectangles in images of 200 x 300 pixels; return top, left, height and width."""
    settings = {"height": 200, "width": 300, "scale": 0.3, "ratio": 4 / 3} | changes
    return [part.numpy() for part in random_boxes(tf.zeros([count]), seed, **settings)]


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [(200, 300, 0.08, 4 / 3), (32, 32, 0.5, 1), (8, 8, 0.001, 100), (1, 9, 0.1, 2), (9, 1, 0.1, 2), (40, 1000, 0.5, 3)],
)
def test_random_boxes_lie_in_the_image_with_the_area_and_ratio_asked_for(height, width, scale, ratio):
    top, left, heights, widths = draw(height=height, width=width, scale=scale, ratio=ratio)
    assert (top >= 0).all() and (left >= 0).all() and (heights >= 1).all() and (widths >= 1).all()
    assert (top + heights <= height).all() and (left + widths <= width).all()
    # sides are rounded to whole pixels
    ratios = [(widths - 0.5) / (heights + 0.5), (widths + 0.5) / (heights - 0.5)]
    assert (ratios[0] <= ratio).all() and (ratios[1] >= 1 / ratio).all()
    if (height, width) != (40, 1000):  # where half of the area never has such a ratio
        assert ((heights + 0.5) * (widths + 0.5) >= scale * height * width).all()


def draw_as_torchvision(random, height, width, scale, ratio):
    """Return the top, left, height and width of one rectangle, by the steps of torchvision's RandomResizedCrop."""
    for _ in range(10):
        area = height * width * random.uniform(scale, 1)
        aspect = math.exp(random.uniform(-math.log(ratio), math.log(ratio)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.integers(0, height - h + 1), random.integers(0, width - w + 1), h, w
    return 0, (width - round(height * ratio)) // 2, height, round(height * ratio)  # of an image that is too wide


# of the small images many rectangles are as high or as wide as all of it
@pytest.mark.parametrize(("height", "width"), [(200, 300), (5, 4)])
def test_random_boxes_are_distributed_as_torchvisions(height, width):
    random = np.random.default_rng(0)
    theirs = np.transpose([draw_as_torchvision(random, height, width, 0.3, 4 / 3) for _ in range(MANY)])
    features = [
        (h * w, np.log(w / h), top + h / 2, left + w / 2)
        for top, left, h, w in (draw(height=height, width=width), theirs)
    ]
    for ours, expected in zip(*features, strict=True):
        assert scipy.stats.ks_2samp(ours, expected).pvalue > 1e-5


def test_random_boxes_have_uniform_areas_positions_and_logarithms_of_the_ratio():
    """Where each rectangle fits."""
    quantiles = np.linspace(0.05, 0.95, 19)
    top, left, heights, widths = draw(height=900, width=900, scale=0.3, ratio=1)
    np.testing.assert_allclose(np.quantile(heights * widths / 900**2, quantiles), 0.3 + 0.7 * quantiles, atol=0.02)
    room = heights < 800
    for start in (top[room], left[room]):
        np.testing.assert_allclose(np.quantile(start / (900 - heights[room]), quantiles), quantiles, atol=0.03)
    assert abs(np.corrcoef(top[room] / (900 - heights[room]), left[room] / (900 - heights[room]))[0, 1]) < 0.04
    _, _, heights, widths = draw(height=900, width=900, scale=1e-4, ratio=4)
    small = heights * widths < 0.2 * 900**2
    logarithms = np.log(widths / heights)[small] / math.log(4)
    np.testing.assert_allclose(np.quantile(logarithms, quantiles), 2 * quantiles - 1, atol=0.06)


def test_random_boxes_that_never_fit_are_the_largest_part_in_the_center():
    top, left, heights, widths = draw(count=5, height=40, width=1000, scale=0.9, ratio=3)
    assert [set(part.tolist()) for part in (top, left, heights, widths)] == [{0}, {440}, {40}, {120}]
    top, left, heights, widths = draw(count=5, height=1000, width=40, scale=0.9, ratio=3)
    assert [set(part.tolist()) for part in (top, left, heights, widths)] == [{440}, {0}, {120}, {40}]


def test_random_boxes_of_a_smaller_batch_are_those_of_the_larger_one():
    for few, many in zip(draw(7), draw(64), strict=True):
        np.testing.assert_array_equal(few, many[:7])


@pytest.mark.parametrize("shape", [(64, 9, 13, 3), (64, 32, 32, 1), (8, 96, 64, 4)], ids=str)
@pytest.mark.parametrize("pixels", [noise, smooth])
def test_random_resized_crop_equals_pillows_bilinear_filter(shape, pixels):
    count, height, width, channels = shape
    images = pixels(*shape)
    boxes = random_boxes(tf.zeros([count]), SEED, height=height, width=width, scale=0.1, ratio=2)
    found = random_resized_crop(tf.constant(images), SEED, scale=0.1, ratio=2).numpy()
    assert found.dtype == np.uint8 and found.shape == shape
    for image, result, *box in zip(images, found, *(part.numpy() for part in boxes), strict=True):
        # each channel alone, because Pillow weighs colours by their alpha
        for channel in range(channels):
            part = crop(image[..., channel], *box)
            expected = np.asarray(Image.fromarray(part).resize((width, height), Image.Resampling.BILINEAR))
            assert abs(result[..., channel].astype(int) - expected).max() <= 1


def crop(image, top, left, height, width):
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def test_crop_and_resize_of_whole_images_changes_nothing():
    images = noise(3, 9, 13, 3)
    whole = Boxes(*(tf.fill([3], size) for size in (0, 0, 9, 13)))
    np.testing.assert_array_equal(crop_and_resize(tf.constant(images), whole), images)


def test_random_resized_crop_traces_for_a_batch_of_any_size():
    traced = tf.function(
        lambda images: random_resized_crop(images, SEED, scale=0.2, ratio=4 / 3),
        input_signature=[tf.TensorSpec((None, 9, 13, 3), tf.uint8)],
    )
    images = noise(5, 9, 13, 3)
    np.testing.assert_array_equal(traced(images[:2]), traced(images)[:2])


def test_random_resized_crop_in_an_optimized_graph_is_that_of_an_eager_call():
    """With sides that no power of two divides, so that their reciprocals are rounded."""
    images = tf.constant(noise(64, 6, 5, 3))
    optimized = tf.function(random_resized_crop, autograph=False)
    settings = {"scale": 0.2, "ratio": 4 / 3}
    np.testing.assert_array_equal(optimized(images, SEED, **settings), random_resized_crop(images, SEED, **settings))
