"""Training and evaluation batches: order, labels and reproducibility."""

import os
import subprocess
import sys
from hashlib import sha256

import numpy as np
import pytest
import tensorflow as tf

from pipeline.data.batches import DeviceImages, TrainingBatches, class_weights, count_images, evaluation_batches
from tests.support.augmentations import ALL, build_augmentation, noise
from tests.support.paths import ROOT


class Numbered:
    """Ten images of one pixel that hold their own position; its class is its last binary digit."""

    def __len__(self):
        return 10

    def take(self, positions):
        return positions.astype(np.uint8).reshape(-1, 1, 1, 1), positions % 2


def batches(
    *, seed=0, epochs=2, label_smoothing=0.0, augment=build_augmentation(), initial_epoch=0, batch_multiple=1, **classes
):
    result = TrainingBatches(
        Numbered(),
        image_shape=(1, 1, 1),
        classes=2,
        batch_size=4,
        epochs=epochs,
        seed=seed,
        augment=augment,
        label_smoothing=label_smoothing,
        initial_epoch=initial_epoch,
        batch_multiple=batch_multiple,
        **classes,
    ).on_host()
    return [tuple(part.numpy() for part in batch) for batch in result]


def positions(result):
    return [images.ravel().tolist() for images, _ in result]


def test_training_batches_hold_each_image_once_an_epoch_in_a_new_order():
    first, second = np.split(np.array(positions(batches(epochs=2)), dtype=object), 2)
    first, second = sum(first, []), sum(second, [])
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second != sorted(second)


def test_training_batches_end_an_epoch_with_the_smaller_batch():
    assert [len(batch) for batch in positions(batches(epochs=2))] == [4, 4, 2, 4, 4, 2]


def test_training_batches_depend_on_the_seed_alone():
    assert positions(batches(seed=1)) == positions(batches(seed=1)) != positions(batches(seed=2))


def test_training_batches_have_another_order_in_each_epoch_of_each_seed():
    numbers = [sum(positions(batches(seed=seed, epochs=3)), []) for seed in range(3)]
    orders = {tuple(order) for of_seed in numbers for order in np.reshape(of_seed, (3, 10))}
    assert len(orders) == 9, "not even seed 0, epoch 1 and seed 1, epoch 0 have the same"


def columns_of_epochs(**changes):
    """Return for each of three epochs whether each of ten images of two pixels, (n, 255), was mirrored."""

    class Wide(Numbered):
        def take(self, positions):
            pixels, labels = super().take(positions)
            return np.concatenate([pixels, np.full_like(pixels, 255)], axis=2), labels

    result = TrainingBatches(
        Wide(),
        image_shape=(1, 2, 1),
        classes=2,
        batch_size=4,
        epochs=3,
        seed=0,
        augment=build_augmentation(),
        label_smoothing=0.0,
        **changes,
    ).on_host()
    pixels = np.concatenate([images for images, _ in result])[:, 0, :, 0]
    mirrored = pixels[:, 0] == 255
    number = np.where(mirrored, pixels[:, 1], pixels[:, 0])
    return [epoch[np.argsort(order)] for epoch, order in zip(np.split(mirrored, 3), np.split(number, 3), strict=True)]


def test_training_batches_with_alternating_flips_show_both_sides_in_two_successive_epochs():
    first, second, third = columns_of_epochs(alternating_flip=True)
    assert 0 < first.sum() < len(first)
    np.testing.assert_array_equal(second, ~first)
    np.testing.assert_array_equal(third, first)
    assert not np.any(columns_of_epochs())


def test_training_batches_of_more_epochs_begin_with_the_same_batches():
    assert positions(batches(epochs=3))[:6] == positions(batches(epochs=2))


def test_training_batches_from_initial_epoch_equal_those_of_an_uninterrupted_run():
    def augment(images, labels, seed):  # images of the step's seed
        return images * 0 + tf.cast(seed[1], tf.uint8), labels

    assert positions(batches(epochs=3, initial_epoch=2)) == positions(batches(epochs=3))[6:]
    assert (
        positions(batches(epochs=3, initial_epoch=2, augment=augment))
        == positions(batches(epochs=3, augment=augment))[6:]
    )


def by_epoch(result):
    """Return the positions of each of two epochs."""
    return [[position for batch in positions(half) for position in batch] for half in (result[:3], result[3:])]


@pytest.mark.parametrize("rare", [1, 2, 4])
def test_balanced_batches_hold_as_many_images_of_each_class(rare):
    labels = (np.arange(10) < rare).astype(np.int64)
    for epoch in by_epoch(batches(balanced_labels=labels)):
        counts = np.bincount(epoch, minlength=10)
        assert counts[labels == 1].sum() == counts[labels == 0].sum() == 5
        assert np.ptp(counts[labels == 1]) <= 1 and np.ptp(counts[labels == 0]) <= 1, "none is taken twice too often"


def test_balanced_batches_have_another_order_in_each_epoch_and_can_be_resumed():
    labels = (np.arange(10) < 2).astype(np.int64)
    whole = batches(balanced_labels=labels)
    first, second = by_epoch(whole)
    assert first != second
    assert positions(batches(balanced_labels=labels, initial_epoch=1)) == positions(whole[3:])


def test_class_weights_have_the_mean_one_over_the_images():
    labels = np.array([0] * 6 + [1] * 2)
    np.testing.assert_allclose(class_weights("balanced", labels, 2), [8 / 12, 2])
    assert class_weights("none", labels, 2) is None
    effective = class_weights("effective", labels, 2)
    assert (effective * [6, 2]).sum() == pytest.approx(8)
    numbers = (1 - 0.999 ** np.array([6, 2])) / 0.001
    assert effective[1] / effective[0] == pytest.approx(numbers[0] / numbers[1], rel=1e-5)


def test_class_weights_of_many_images_approach_each_other_where_they_are_effective():
    labels = np.array([0] * 50_000 + [1] * 5_000)
    effective, balanced = class_weights("effective", labels, 2), class_weights("balanced", labels, 2)
    assert balanced[1] / balanced[0] == pytest.approx(10)
    assert effective[1] / effective[0] == pytest.approx(1, abs=0.01)


def test_class_without_images_has_no_weight():
    np.testing.assert_array_equal(class_weights("balanced", np.array([0, 0, 2]), 3), [0.75, 0, 1.5])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_training_batches_with_class_weights_hold_that_of_each_images_class_however_smooth_its_label(label_smoothing):
    weights = np.float32([0.5, 2.0])
    for _, labels, of_image in batches(class_weights=weights, label_smoothing=label_smoothing):
        np.testing.assert_allclose(of_image, np.where(labels[:, 0] > 0.5, 0.5, 2.0), rtol=1e-6)


def test_training_batches_that_mix_images_mix_the_weights_of_their_classes():
    def mix(images, labels, seed):
        return images, 0.75 * labels + 0.25 * labels[::-1]

    weights = np.float32([0.5, 2.0])
    for _, labels, of_image in batches(class_weights=weights, label_smoothing=0.2, augment=mix):
        share = (labels[:, 1] - 0.1) / 0.8  # of the second class, before the labels were smoothed
        np.testing.assert_allclose(of_image, (1 - share) * 0.5 + share * 2.0, rtol=1e-5)


def test_training_batches_augment_each_step_with_its_own_seed():
    seeds = []

    def record_seed(images, labels, seed):
        tf.py_function(lambda value: seeds.append(tuple(value.numpy())), [seed], [])
        return images, labels

    batches(seed=7, augment=record_seed)
    assert sorted(seeds) == [(7, step) for step in range(6)]


def test_label_smoothing_is_spread_over_all_classes():
    (images, labels), *_ = batches(label_smoothing=0.2)
    truth = images.ravel() % 2
    np.testing.assert_allclose(labels[np.arange(4), truth], 0.9)
    np.testing.assert_allclose(labels.sum(axis=1), 1)


def test_batch_multiple_drops_the_images_beyond_a_multiple_in_each_epoch():
    alone = positions(batches())
    assert [len(batch) for batch in alone] == [4, 4, 2, 4, 4, 2]
    assert positions(batches(batch_multiple=2)) == alone
    assert positions(batches(batch_multiple=4)) == alone[:2] + alone[3:5]
    assert [count_images(10, batch_size=4, batch_multiple=multiple) for multiple in (1, 2, 4)] == [10, 10, 8]


def test_evaluation_batches_hold_each_image_once_in_order_with_one_hot_labels():
    result = list(evaluation_batches(Numbered(), image_shape=(1, 1, 1), classes=2, batch_size=4))
    assert [image for images, _ in result for image in images.numpy().ravel()] == list(range(10))
    np.testing.assert_array_equal(result[0][1], [[1, 0], [0, 1], [1, 0], [0, 1]])


def test_batches_are_traced_without_autograph(converted):
    assert len(batches()) and len(evaluation_batches(Numbered(), image_shape=(1, 1, 1), classes=2, batch_size=4))
    assert converted == []


def test_evaluation_batches_with_another_image_shape_raise():
    result = evaluation_batches(Numbered(), image_shape=(2, 1, 1), classes=2, batch_size=4)
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(result)


class Noise:
    """Fifty small images of noise of five classes."""

    # sides that no power of two divides, so that their reciprocals are rounded
    images = noise(50, 9, 7, 3)

    def __len__(self):
        return 50

    def take(self, positions):
        return self.images[positions], positions % 5


def augmented_batches():
    return TrainingBatches(
        Noise(),
        image_shape=(9, 7, 3),
        classes=5,
        batch_size=16,
        epochs=3,
        seed=3,
        augment=build_augmentation(**ALL),
        label_smoothing=0.1,
    ).on_host()


def test_augmented_batches_are_bitwise_reproducible_from_any_step():
    result = augmented_batches()
    first, again, later = list(result), list(augmented_batches()), list(result.skip(6))  # of 4 an epoch
    for actual, expected in ((again, first), (later, first[6:])):
        for (images, labels), (same_images, same_labels) in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(images, same_images)
            np.testing.assert_array_equal(labels, same_labels)


@pytest.mark.slow
def test_augmented_batches_are_bitwise_equal_in_another_process():
    program = "from tests.unit.data.test_batches import digest; print(digest())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_NUM_INTRAOP_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == digest()


def digest():
    return sha256(b"".join(part.numpy().tobytes() for batch in augmented_batches() for part in batch)).hexdigest()


@pytest.mark.parametrize(
    "settings",
    [
        {"augment": build_augmentation(**ALL), "class_weights": np.array([1, 2, 3, 4, 5], np.float32)},
        {"augment": build_augmentation(flip=False), "alternating_flip": True, "size": (5, 4)},
        {"augment": build_augmentation(translation=2), "balanced_labels": np.arange(50) // 12, "initial_epoch": 1},
    ],
    ids=["all augmentations, class weights", "alternating flip, another size", "balanced, from the second epoch"],
)
def test_batches_made_on_the_device_are_those_of_the_host(settings):
    result = TrainingBatches(
        Noise(), image_shape=(9, 7, 3), classes=5, batch_size=16, epochs=2, seed=3, label_smoothing=0.1, **settings
    )
    copy = DeviceImages.copy_of(Noise())
    make = tf.function(result.on_device, autograph=False, reduce_retracing=True)
    made = [make(copy, plan) for plan in result.plans()]
    expected = list(result.on_host())
    assert len(made) == len(expected) > 3
    for batch, same in zip(made, expected, strict=True):
        for part, same_part in zip(batch, same, strict=True):
            assert part.dtype == same_part.dtype
            np.testing.assert_array_equal(part, same_part)


def test_mixup_changes_the_labels_of_training_batches():
    result = TrainingBatches(
        Noise(),
        image_shape=(9, 7, 3),
        classes=5,
        batch_size=16,
        epochs=1,
        seed=3,
        augment=build_augmentation(mixup_alpha=5.0),
        label_smoothing=0.0,
    ).on_host()
    labels = np.concatenate([labels for _, labels in result])
    assert (labels.max(axis=1) < 0.9).mean() > 0.5
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-6)
