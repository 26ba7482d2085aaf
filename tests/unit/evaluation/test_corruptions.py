"""Image corruptions."""

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


def make_images(channels, *, number=6, side=(16, 20)):
    """Smooth blobs with some grain, as in photographs."""
    random = np.random.default_rng(0)
    blobs = gaussian_filter(random.normal(0, 1, (number, *side, channels)), (0, 2, 2, 0))
    return np.clip(128 + 300 * blobs + random.normal(0, 6, blobs.shape), 0, 255).astype(np.uint8)


@EVERY
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_corruption_grows_with_strength_and_keeps_shape_type_and_transparency(corrupt, channels):
    clean = make_images(channels)
    before = clean.copy()
    distances = []
    for strength in STRENGTHS:
        corrupted = corrupt(clean, strength, 0)
        assert corrupted.shape == clean.shape and corrupted.dtype == np.uint8
        np.testing.assert_array_equal(corrupted[..., 3:], clean[..., 3:])
        distances.append(np.abs(corrupted[..., :3].astype(int) - clean[..., :3]).mean())
    assert 0 < distances[0] < distances[1] < distances[2]
    np.testing.assert_array_equal(clean, before)


@EVERY
def test_corruption_is_deterministic_by_seed(corrupt):
    clean = make_images(3)
    np.testing.assert_array_equal(corrupt(clean, 2, [1, 2]), corrupt(clean, 2, [1, 2]))
    assert np.array_equal(corrupt(clean, 2, 1), corrupt(clean, 2, 2)) != corrupt.__name__.endswith("noise")


@EVERY
def test_corruption_of_a_flat_image_changes_it_only_by_noise(corrupt):
    flat = np.full((2, 8, 8, 1), 128, np.uint8)
    assert np.array_equal(corrupt(flat, 3, 0), flat) != corrupt.__name__.endswith("noise")


def test_gaussian_noise_has_its_standard_deviation():
    grey = np.full((50, 32, 32, 3), 128, np.uint8)
    for strength, deviation in zip(STRENGTHS, NOISE, strict=True):
        assert gaussian_noise(grey, strength, 0).std() == pytest.approx(255 * deviation, rel=0.02)


def test_contrast_shrinks_around_the_mean_of_each_image():
    clean = make_images(3)
    for strength, share in zip(STRENGTHS, CONTRAST, strict=True):
        corrupted = contrast(clean, strength, 0)
        np.testing.assert_allclose(corrupted.mean(axis=(1, 2)), clean.mean(axis=(1, 2)), atol=0.5)
        np.testing.assert_allclose(corrupted.std(axis=(1, 2)), share * clean.std(axis=(1, 2)), atol=0.5)


def test_gaussian_blur_is_wider_in_a_larger_image():
    dot = np.zeros((1, 64, 64, 1), np.uint8)
    dot[0, 32, 32] = 255
    large = gaussian_blur(dot, 3, 0)[0, 32, :, 0]
    small = gaussian_blur(dot[:, 16:48, 16:48], 3, 0)[0, 16, :, 0]
    assert np.count_nonzero(large > large.max() / 2) > np.count_nonzero(small > small.max() / 2)
