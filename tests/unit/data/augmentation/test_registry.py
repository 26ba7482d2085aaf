"""All augmentations together: reproducible, for images of every kind."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from pipeline.data.augmentation.geometric import random_flip, random_translation
from pipeline.data.augmentation.mixing import mixup_or_cutmix
from pipeline.data.augmentation.registry import augment_as_drawn, draw_numbers
from tests.support.augmentations import ALL, SEED, build_augmentation, noise, smooth

IMAGES = noise(64, 6, 5, 3)
LABELS = np.eye(10, dtype=np.float32)[np.arange(64) % 10]


def apply(augment, seed=SEED, images=IMAGES, labels=LABELS):
    return [part.numpy() for part in augment(tf.constant(images), tf.constant(labels), tf.constant(seed, tf.int64))]


@pytest.mark.parametrize("on", [{name: value} for name, value in ALL.items()] + [ALL], ids=str)
def test_augmentation_is_a_function_of_the_seed(on):
    first, again, other = (apply(build_augmentation(**on), seed) for seed in ([1, 2], [1, 2], [1, 3]))
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("shape", [(9, 8, 8, 1), (9, 12, 6, 3), (9, 6, 12, 4), (1, 8, 8, 3)], ids=str)
def test_all_augmentations_keep_shape_and_type_of_grayscale_rgb_and_rgba(shape):
    images, labels = apply(build_augmentation(**ALL), images=smooth(*shape), labels=LABELS[: shape[0]])
    assert images.shape == shape and images.dtype == np.uint8
    assert labels.shape == (shape[0], 10) and labels.dtype == np.float32
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-6)
    assert not np.array_equal(images, smooth(*shape))


def test_each_augmentation_draws_its_own_random_numbers():
    images, _ = apply(build_augmentation(flip=True, translation=1))
    first, second = (tf.random.fold_in(SEED, number) for number in range(2))
    np.testing.assert_array_equal(
        images, random_translation(random_flip(tf.constant(IMAGES), first), second, max_pixels=1)
    )
    assert not np.array_equal(images, random_translation(random_flip(tf.constant(IMAGES), first), first, max_pixels=1))


def test_mixing_draws_other_random_numbers_than_the_augmentation_before():
    images, labels = apply(build_augmentation(flip=True, mixup_alpha=1.0))
    seeds = [tf.random.fold_in(SEED, number) for number in range(2)]
    flipped = random_flip(tf.constant(IMAGES), seeds[0])
    expected = mixup_or_cutmix(
        flipped, tf.constant(LABELS), seeds[1], mixup_alpha=1.0, cutmix_alpha=0.0, probability=1.0
    )
    np.testing.assert_array_equal(images, expected[0])
    np.testing.assert_array_equal(labels, expected[1])


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("mixup_alpha", "cutmix_alpha")])
def test_image_augmentations_leave_labels_unchanged(name):
    images, labels = apply(build_augmentation(**{name: ALL[name]}))
    assert not np.array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_augmentation_with_everything_off_changes_nothing():
    images, labels = apply(build_augmentation())
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_augmentation_of_clean_epochs_has_crops_flips_and_translations_alone():
    moving = {name: ALL[name] for name in ("crop_scale", "flip", "vertical_flip", "translation")}
    images, labels = apply(build_augmentation(clean=True, **ALL))
    expected_images, expected_labels = apply(build_augmentation(**moving))
    np.testing.assert_array_equal(images, expected_images)
    np.testing.assert_array_equal(labels, expected_labels)
    assert not np.array_equal(images, IMAGES)


def as_drawn(images, labels, *, jit_compile=None):
    """Return a function of images and drawn numbers that applies all augmentations as XLA can compile them."""
    augment = build_augmentation(for_xla=True, **ALL)
    function = tf.function(
        lambda images, drawn: augment_as_drawn(augment, images, labels, drawn),
        autograph=False,
        jit_compile=jit_compile,
    )
    shapes = {"image_shape": images.shape[1:], "classes": labels.shape[1]}
    drawn = draw_numbers(build_augmentation(**ALL), len(images), SEED, **shapes)
    return function, (images, drawn)


def test_augmentation_for_xla_by_numbers_that_were_drawn_equals_the_other():
    images, labels = tf.constant(IMAGES), tf.constant(LABELS)
    function, arguments = as_drawn(images, labels)
    for part, same in zip(function(*arguments), build_augmentation(**ALL)(images, labels, SEED), strict=True):
        np.testing.assert_array_equal(part, same)


def test_numbers_are_drawn_in_a_graph_without_any_image():
    augment = build_augmentation(**ALL)
    # of which one batch would take 1.2 TB
    shapes = {"image_shape": (2_000, 2_000, 3), "classes": 10}
    # not for a constant, as TensorFlow would compute constant shapes and masks while it traces
    draw = tf.function(lambda count: draw_numbers(augment, count, SEED, **shapes), autograph=False)
    drawn = draw(tf.constant(100_000))
    assert {len(numbers) for numbers in drawn} == {100_000}


def test_augmentation_for_xla_has_only_operations_that_xla_compiles_for_a_gpu():
    # XLA registers its kernels when it first compiles
    tf.function(lambda x: x + 1, jit_compile=True)(1)
    function, arguments = as_drawn(tf.constant(IMAGES), tf.constant(LABELS))
    concrete = function.get_concrete_function(*arguments)
    # not the graph's own nodes, among which are placeholders of the arguments
    functions = [concrete.function_def, *concrete.graph.as_graph_def().library.function]
    nodes = [node for each in functions for node in each.node_def]
    devices = {
        name: {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(name).kernel}
        for name in {node.op for node in nodes}
    }
    assert len(devices) > 20
    assert not {name for name, found in devices.items() if "XLA_GPU_JIT" not in found}
    # it has no kernel for the one that other devices transform images with
    assert "ImageProjectiveTransformV3" not in devices


@pytest.mark.slow
def test_augmentation_compiled_by_xla_differs_in_few_pixels():
    images, labels = tf.constant(smooth(64, 32, 32, 3)), tf.constant(LABELS)
    function, arguments = as_drawn(images, labels, jit_compile=True)
    (compiled, compiled_labels), (plain, plain_labels) = (
        function(*arguments),
        build_augmentation(**ALL)(images, labels, SEED),
    )
    # RandAugment may take the other of two pixels that are equally near
    assert np.mean(np.asarray(compiled) != np.asarray(plain)) < 0.002
    np.testing.assert_allclose(compiled_labels, plain_labels, atol=1e-6)
