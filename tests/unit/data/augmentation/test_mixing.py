"""Mixup and cutmix: images and labels are mixed in the same shares."""

import numpy as np
import pytest
import tensorflow as tf

from pipeline.data.augmentation.mixing import cutmix, mixup, mixup_or_cutmix
from tests.support.augmentations import SEED, noise

IMAGES = noise(300, 12, 16, 3)
LABELS = np.eye(300, dtype=np.float32)
NEXT = np.roll(np.arange(300), -1)


def mix(*, mixup_alpha=0.0, cutmix_alpha=0.0, probability=1.0):
    images, labels = mixup_or_cutmix(
        tf.constant(IMAGES),
        tf.constant(LABELS),
        SEED,
        mixup_alpha=mixup_alpha,
        cutmix_alpha=cutmix_alpha,
        probability=probability,
    )
    return images.numpy(), labels.numpy()


def shares(labels):
    """How much of each label is its own; the rest is the next image's."""
    own = labels[np.arange(300), np.arange(300)]
    np.testing.assert_allclose(labels[np.arange(300), NEXT], 1 - own, atol=1e-6)
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
    return own


def test_mixup_blends_images_and_labels_with_the_next_in_one_share():
    images, labels = mix(mixup_alpha=1.0)
    own = shares(labels)[:, None, None, None]
    expected = own * IMAGES + (1 - own) * IMAGES[NEXT]
    assert np.abs(images - expected).max() <= 0.51  # rounded
    assert 0.4 < own.mean() < 0.6 and own.min() < 0.05 and own.max() > 0.95


def test_cutmix_pastes_a_rectangle_of_the_next_and_labels_by_area():
    images, labels = mix(cutmix_alpha=1.0)
    own = shares(labels)
    pasted = (images != IMAGES).any(axis=3)
    np.testing.assert_array_equal(images[pasted], IMAGES[NEXT][pasted])
    np.testing.assert_allclose(1 - pasted.mean(axis=(1, 2)), own, atol=0.02)  # a pixel may be alike in both
    for image in pasted[pasted.any(axis=(1, 2))]:
        rows, columns = image.any(axis=1), image.any(axis=0)
        assert image.sum() >= 0.95 * rows.sum() * columns.sum()
    assert own.std() > 0.15 and own.min() < 0.3


@pytest.mark.parametrize(("mixing", "alpha"), [(mixup, 0.2), (mixup, 5.0), (cutmix, 1.0)])
def test_mixing_shares_are_drawn_from_beta_for_each_image(mixing, alpha):
    images = tf.zeros((20_000, 16, 16, 1), tf.uint8)
    _, share = mixing(images, SEED, alpha=alpha)
    if mixing is mixup:
        assert np.mean(share) == pytest.approx(0.5, abs=0.02)
        assert np.var(share) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)  # of Beta(alpha, alpha)
    else:
        assert np.mean(share) > 0.55  # 0.5 before what lies outside is cut off


def test_mixup_with_tiny_alpha_keeps_every_image_whole():
    _, labels = mix(mixup_alpha=1e-6)
    assert np.isfinite(labels).all()
    assert set(np.round(shares(labels), 6)) <= {0, 1}


def test_mixup_and_cutmix_together_each_mix_about_half_of_the_images():
    images, labels = mix(mixup_alpha=2.0, cutmix_alpha=2.0)
    by_cutmix = ((images == IMAGES) | (images == IMAGES[NEXT])).all(axis=(1, 2, 3))
    assert 100 < by_cutmix.sum() < 200
    own = shares(labels)[:, None, None, None]
    expected = own * IMAGES + (1 - own) * IMAGES[NEXT]
    assert np.abs(images - expected)[~by_cutmix].max() <= 0.51


def test_mixing_draws_its_numbers_apart():
    images, _ = mix(mixup_alpha=2.0, cutmix_alpha=2.0)
    choices = [
        mixing(tf.constant(IMAGES), tf.random.fold_in(SEED, number), alpha=2.0)[0].numpy()
        for number, mixing in enumerate((mixup, cutmix))
    ]
    for image, by_mixup, by_cutmix in zip(images, *choices, strict=True):
        assert np.array_equal(image, by_mixup) or np.array_equal(image, by_cutmix)
    whole = (mix(mixup_alpha=2.0, cutmix_alpha=2.0, probability=0.5)[0] == IMAGES).all(axis=(1, 2, 3))
    chosen_mixup = np.array([np.array_equal(*pair) for pair in zip(images, choices[0], strict=True)])
    assert 0.3 < chosen_mixup[~whole].mean() < 0.7, "which images are mixed does not tell how"


def test_cutmix_draws_row_and_column_of_the_center_apart():
    images = np.tile(np.array([0, 1], np.uint8), 1000).reshape(-1, 1, 1, 1) * np.ones((1, 12, 16, 1), np.uint8)
    result, _ = cutmix(tf.constant(images), SEED, alpha=1.0)
    centers = set()
    for pasted in (result.numpy() != images)[..., 0]:
        rows, columns = (np.flatnonzero(pasted.any(axis=axis)) for axis in (1, 0))
        if len(rows) and rows[0] and columns[0] and rows[-1] < 11 and columns[-1] < 15:
            centers.add((rows[0] + len(rows) // 2, columns[0] + len(columns) // 2))
    assert len(centers) > 80, "from one number as row and as column came 48 at most"


def test_mix_probability_is_the_share_of_mixed_images():
    images, labels = mix(mixup_alpha=2.0, probability=0.3)
    whole = (images == IMAGES).all(axis=(1, 2, 3))
    assert 180 < whole.sum() < 240
    np.testing.assert_array_equal(shares(labels)[whole], 1)
    assert shares(labels)[~whole].max() < 1


def test_mixing_leaves_a_batch_of_one_image_unchanged():
    images, labels = mixup_or_cutmix(
        tf.constant(IMAGES[:1]), tf.constant(LABELS[:1]), SEED, mixup_alpha=1.0, cutmix_alpha=1.0, probability=1.0
    )
    np.testing.assert_array_equal(images, IMAGES[:1])
    np.testing.assert_allclose(labels, LABELS[:1])
