"""Colour operations against Pillow's."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from pipeline.data.augmentation import color
from tests.support.augmentations import SEED, noise, smooth

BATCHES = [noise(4, 9, 7, 3), smooth(4, 9, 7, 3), smooth(4, 9, 7, 1), np.full((2, 4, 4, 3), 77, np.uint8)]


def enhance(kind, factor):
    return lambda image: getattr(ImageEnhance, kind)(image).enhance(factor)


CASES = {
    **{
        f"{name} {factor}": (lambda x, c=operation, f=factor: c(x, f), enhance(kind, factor))
        for name, operation, kind in (
            ("brightness", color.brightness, "Brightness"),
            ("contrast", color.contrast, "Contrast"),
            ("saturation", color.saturation, "Color"),
            ("sharpness", color.sharpness, "Sharpness"),
        )
        for factor in (0.25, 1.0, 1.75)
    },
    "posterize": (lambda x: color.posterize(x, bits=3), lambda image: ImageOps.posterize(image, 3)),
    "solarize": (lambda x: color.solarize(x, threshold=100), lambda image: ImageOps.solarize(image, 100)),
    "equalize": (color.equalize, ImageOps.equalize),
}


def pillow(operation, images):
    as_pillow = (Image.fromarray(image[..., 0] if image.shape[2] == 1 else image) for image in images)
    return np.stack([np.asarray(operation(image)).reshape(images.shape[1:]) for image in as_pillow])


@pytest.mark.parametrize("images", BATCHES, ids=["noise", "smooth", "gray", "plain"])
@pytest.mark.parametrize("case", CASES)
def test_color_operations_equal_pillows(case, images):
    ours, theirs = CASES[case]
    result, expected = ours(tf.constant(images)).numpy().astype(int), pillow(theirs, images)
    assert np.abs(result - expected).max() <= 1  # float32 here, float64 and tables there
    assert (result == expected).mean() > 0.97


@pytest.mark.parametrize("images", BATCHES, ids=["noise", "smooth", "gray", "plain"])
def test_auto_contrast_equals_pillows_but_for_rounding(images):
    result = color.auto_contrast(tf.constant(images)).numpy().astype(int)
    assert np.abs(result - pillow(ImageOps.autocontrast, images)).max() <= 1


def test_equalize_with_too_few_values_equals_pillows():
    image = np.array([[[[5], [5], [9]]]], np.uint8)
    np.testing.assert_array_equal(color.equalize(tf.constant(image)), pillow(ImageOps.equalize, image))


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: color.brightness(x, 0.3),
        lambda x: color.contrast(x, 0.3),
        lambda x: color.saturation(x, 0.3),
        lambda x: color.sharpness(x, 0.0),
        lambda x: color.posterize(x, bits=2),
        lambda x: color.solarize(x, threshold=0),
        color.auto_contrast,
        color.equalize,
        lambda x: color.color_jitter(x, SEED, strength=0.9),
    ],
)
def test_color_operations_leave_the_alpha_channel_unchanged(operation):
    images = noise(3, 24, 20, 4) // 2
    result = operation(tf.constant(images)).numpy()
    np.testing.assert_array_equal(result[..., 3], images[..., 3])
    assert not np.array_equal(result[..., :3], images[..., :3])
    np.testing.assert_array_equal(result[..., :3], operation(tf.constant(images[..., :3])))


def test_color_jitter_stays_within_its_strength_and_differs_by_image():
    images = np.full((200, 2, 2, 3), 100, np.uint8)  # of one colour, so that only brightness shows
    result = color.color_jitter(tf.constant(images), SEED, strength=0.2).numpy()
    assert 79 <= result.min() < 85 and 115 < result.max() <= 120
    assert len(np.unique(result)) > 20


@pytest.mark.parametrize("operation", [color.auto_contrast, color.equalize, lambda x: color.sharpness(x, 0.5)])
def test_color_operations_take_empty_batches(operation):
    assert operation(tf.zeros((0, 8, 8, 3), tf.uint8)).shape == (0, 8, 8, 3)


def test_color_jitter_draws_each_factor_for_itself():
    gray, colored = [[80] * 3, [120] * 3], [[130, 100, 70]]
    images = np.tile(np.array([gray + colored * 2], np.uint8).reshape(1, 2, 2, 3), (500, 1, 1, 1))
    result = color.color_jitter(tf.constant(images), SEED, strength=0.3).numpy().astype(float).reshape(500, 4, 3)
    brightness = result.mean(axis=(1, 2)) / images.mean()
    contrast = (result[:, 1, 0] - result[:, 0, 0]) / 40 / brightness
    saturation = (result[:, 2, 0] - result[:, 2, 2]) / 60 / brightness / contrast
    correlations = np.corrcoef([brightness, contrast, saturation])
    assert np.abs(correlations - np.eye(3)).max() < 0.25
