"""RandAugment: which images change, and how far."""

import numpy as np
import pytest
import tensorflow as tf

from pipeline.data.augmentation import color, geometric
from pipeline.data.augmentation.rand_augment import _color_operations, _geometric_matrices, rand_augment
from tests.support.augmentations import SEED, smooth

COUNT = 1400
IMAGES = np.repeat(smooth(1, 24, 20, 3), COUNT, axis=0)


def possible_results(image, magnitude):
    """What one operation can make of an image: by name, and by sign where there is one."""
    strength = magnitude / 30
    moves, x = _geometric_matrices(strength, 24, 20), tf.constant(image[None])
    moved = {
        f"move {place}": geometric.affine_transform(x, tf.constant(moves[place][None])) for place in np.ndindex(2, 6)
    }
    colored = {
        f"colour {number} {sign}": change(x, tf.constant([sign]))
        for number, change in enumerate(_color_operations(strength))
        for sign in (1.0, -1.0)
    }
    return {name: result.numpy()[0].tobytes() for name, result in (moved | colored).items()}


def test_rand_augment_draws_each_of_fourteen_operations_equally_often():
    result = rand_augment(tf.constant(IMAGES), SEED, layers=1, magnitude=15).numpy()
    names = {content: name for name, content in possible_results(IMAGES[0], 15).items()}
    drawn = [names[image.tobytes()] for image in result]
    counts = {name: drawn.count(name) for name in set(drawn)}
    assert len(counts) > 20  # 14 operations, most of them both ways
    for name, count in counts.items():
        ways = len([other for other, content in possible_results(IMAGES[0], 15).items() if names[content] == name])
        assert count == pytest.approx(COUNT * ways / 28, abs=5 * np.sqrt(COUNT * ways / 28)), name


def test_rand_augment_with_two_layers_applies_two_operations():
    result = rand_augment(tf.constant(IMAGES), SEED, layers=2, magnitude=15).numpy()
    once = set(possible_results(IMAGES[0], 15).values())
    changed_twice = np.mean([image.tobytes() not in once for image in result])
    assert changed_twice > 0.5
    darker = color.brightness(tf.constant(IMAGES[:1]), 1 - 0.45)
    both = geometric.affine_transform(darker, tf.constant(_geometric_matrices(0.5, 24, 20)[0, 5][None])).numpy()[0]
    assert any(np.array_equal(image, both) for image in result)


def test_rand_augment_strengths_equal_torchvisions():
    height, width = 331, 331
    right = _geometric_matrices(12 / 30, height, width)[0]
    assert right[1, 0, 1] == pytest.approx(0.3 * 0.4) and right[2, 1, 0] == pytest.approx(0.3 * 0.4)
    assert right[3, 0, 2] == pytest.approx(150 * 0.4) and right[4, 1, 2] == pytest.approx(150 * 0.4)
    assert np.degrees(np.arccos(right[5, 0, 0])) == pytest.approx(30 * 0.4, abs=1e-3)
    operations = _color_operations(12 / 30)
    colored = tf.constant(IMAGES[:1])
    kinds = (color.brightness, color.saturation, color.contrast, color.sharpness)
    for operation, kind in zip(operations[:4], kinds, strict=True):
        for sign in (-1.0, 1.0):
            expected = kind(colored, 1 + 0.9 * 0.4 * sign)
            np.testing.assert_array_equal(operation(colored, tf.constant([sign])), expected)
    brightness, posterize, solarize = (operations[number] for number in (0, 4, 5))
    ramp = tf.reshape(tf.range(256), (1, 16, 16, 1))
    ramp = tf.cast(ramp, tf.uint8)
    np.testing.assert_array_equal(brightness(ramp, tf.constant([-1.0])), color.brightness(ramp, 1 - 0.9 * 0.4))
    np.testing.assert_array_equal(posterize(ramp, None), ramp.numpy() & 0b11111100)
    np.testing.assert_array_equal(solarize(ramp, None), color.solarize(ramp, threshold=153))


def test_rand_augment_with_larger_magnitude_changes_images_more():
    differences = [
        np.abs(rand_augment(tf.constant(IMAGES), SEED, layers=1, magnitude=m).numpy() - IMAGES.astype(int)).mean()
        for m in (3, 12, 30)
    ]
    assert differences[0] < differences[1] < differences[2]
