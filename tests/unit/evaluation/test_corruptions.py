"""What becomes of images that are spoilt on purpose."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pipeline.evaluation.corruptions import (
    CONTRAST,
    CORRUPTIONS,
    NOISE,
    STRENGTHS,
    contrast,
    gaussian_blur,
    gaussian_noise,
)

EVERY = pytest.mark.parametrize("corrupt", CORRUPTIONS.values(), ids=CORRUPTIONS)


def pictures(channels, *, many=6, side=(16, 20)):
    """Smooth blots with some grain, as photographs have."""
    random = np.random.default_rng(0)
    blots = gaussian_filter(random.normal(0, 1, (many, *side, channels)), (0, 2, 2, 0))
    return np.clip(128 + 300 * blots + random.normal(0, 6, blots.shape), 0, 255).astype(np.uint8)


@EVERY
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_stronger_is_farther_from_the_clean_images_and_shape_type_and_transparency_stay(corrupt, channels):
    clean = pictures(channels)
    before = clean.copy()
    distances = []
    for strength in STRENGTHS:
        spoilt = corrupt(clean, strength, 0)
        assert spoilt.shape == clean.shape and spoilt.dtype == np.uint8
        np.testing.assert_array_equal(spoilt[..., 3:], clean[..., 3:])
        distances.append(np.abs(spoilt[..., :3].astype(int) - clean[..., :3]).mean())
    assert 0 < distances[0] < distances[1] < distances[2]
    np.testing.assert_array_equal(clean, before)


@EVERY
def test_equal_seeds_give_equal_images_and_other_seeds_other_noise(corrupt):
    clean = pictures(3)
    np.testing.assert_array_equal(corrupt(clean, 2, [1, 2]), corrupt(clean, 2, [1, 2]))
    assert np.array_equal(corrupt(clean, 2, 1), corrupt(clean, 2, 2)) != corrupt.__name__.endswith("noise")


@EVERY
def test_an_image_of_one_value_is_spoilt_by_noise_alone(corrupt):
    flat = np.full((2, 8, 8, 1), 128, np.uint8)
    assert np.array_equal(corrupt(flat, 3, 0), flat) != corrupt.__name__.endswith("noise")


def test_gaussian_noise_has_the_deviation_that_it_names():
    grey = np.full((50, 32, 32, 3), 128, np.uint8)
    for strength, deviation in zip(STRENGTHS, NOISE, strict=True):
        assert gaussian_noise(grey, strength, 0).std() == pytest.approx(255 * deviation, rel=0.02)


def test_contrast_is_left_in_the_share_that_it_names_around_each_image_s_own_mean():
    clean = pictures(3)
    for strength, share in zip(STRENGTHS, CONTRAST, strict=True):
        spoilt = contrast(clean, strength, 0)
        np.testing.assert_allclose(spoilt.mean(axis=(1, 2)), clean.mean(axis=(1, 2)), atol=0.5)
        np.testing.assert_allclose(spoilt.std(axis=(1, 2)), share * clean.std(axis=(1, 2)), atol=0.5)


def test_blur_is_as_wide_in_a_larger_image_as_it_is_large():
    dot = np.zeros((1, 64, 64, 1), np.uint8)
    dot[0, 32, 32] = 255
    large = gaussian_blur(dot, 3, 0)[0, 32, :, 0]
    small = gaussian_blur(dot[:, 16:48, 16:48], 3, 0)[0, 16, :, 0]
    assert np.count_nonzero(large > large.max() / 2) > np.count_nonzero(small > small.max() / 2)
