"""Batches of tf.data: their order, their labels, and that any epoch can be made again alone."""

import os
import subprocess
import sys
from hashlib import sha256

import numpy as np
import pytest
import tensorflow as tf

from pipeline.data.batches import evaluation_batches, training_batches
from tests.support.augmentations import ALL, build_augmentation, noise
from tests.support.paths import ROOT


class Numbered:
    """Ten images of one pixel that hold their own position; its class is its last binary digit."""

    def __len__(self):
        return 10

    def take(self, positions):
        return positions.astype(np.uint8).reshape(-1, 1, 1, 1), positions % 2


def batches(*, seed=0, epochs=2, label_smoothing=0.0, augment=build_augmentation(), initial_epoch=0, batch_multiple=1):
    made = training_batches(
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
    )
    return [(images.numpy(), labels.numpy()) for images, labels in made]


def positions(made):
    return [images.ravel().tolist() for images, _ in made]


def test_an_epoch_is_every_image_once_in_a_new_order():
    first, second = np.split(np.array(positions(batches(epochs=2)), dtype=object), 2)
    first, second = sum(first, []), sum(second, [])
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second != sorted(second)


def test_the_last_batch_of_an_epoch_is_the_smaller():
    assert [len(batch) for batch in positions(batches(epochs=2))] == [4, 4, 2, 4, 4, 2]


def test_the_order_is_the_seeds():
    assert positions(batches(seed=1)) == positions(batches(seed=1)) != positions(batches(seed=2))


def test_a_longer_run_begins_with_the_same_batches():
    assert positions(batches(epochs=3))[:6] == positions(batches(epochs=2))


def test_batches_after_some_epochs_are_those_of_a_row_that_began_at_the_first():
    def augment(images, labels, seed):  # which tells the seed of the step
        return images * 0 + tf.cast(seed[1], tf.uint8), labels

    assert positions(batches(epochs=3, initial_epoch=2)) == positions(batches(epochs=3))[6:]
    assert (
        positions(batches(epochs=3, initial_epoch=2, augment=augment))
        == positions(batches(epochs=3, augment=augment))[6:]
    )


def test_every_step_changes_images_by_a_seed_of_its_own():
    seeds = []

    def note(images, labels, seed):
        tf.py_function(lambda value: seeds.append(tuple(value.numpy())), [seed], [])
        return images, labels

    batches(seed=7, augment=note)
    assert sorted(seeds) == [(7, step) for step in range(6)]


def test_label_smoothing_is_spread_over_all_classes():
    (images, labels), *_ = batches(label_smoothing=0.2)
    truth = images.ravel() % 2
    np.testing.assert_allclose(labels[np.arange(4), truth], 0.9)
    np.testing.assert_allclose(labels.sum(axis=1), 1)


def test_the_size_of_every_batch_is_a_multiple_and_other_images_are_left_out_each_epoch():
    alone = positions(batches())
    assert [len(batch) for batch in alone] == [4, 4, 2, 4, 4, 2]
    assert positions(batches(batch_multiple=2)) == alone
    assert positions(batches(batch_multiple=4)) == alone[:2] + alone[3:5]


def test_evaluation_sees_every_image_once_in_its_own_order_with_hard_labels():
    made = list(evaluation_batches(Numbered(), image_shape=(1, 1, 1), classes=2, batch_size=4))
    assert [image for images, _ in made for image in images.numpy().ravel()] == list(range(10))
    np.testing.assert_array_equal(made[0][1], [[1, 0], [0, 1], [1, 0], [0, 1]])


def test_images_of_another_shape_than_promised_are_an_error():
    made = evaluation_batches(Numbered(), image_shape=(2, 1, 1), classes=2, batch_size=4)
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(made)


class Noise:
    """Fifty small images of noise of five classes."""

    images = noise(50, 8, 8, 3)

    def __len__(self):
        return 50

    def take(self, positions):
        return self.images[positions], positions % 5


def changed_batches():
    return training_batches(
        Noise(),
        image_shape=(8, 8, 3),
        classes=5,
        batch_size=16,
        epochs=3,
        seed=3,
        augment=build_augmentation(**ALL),
        label_smoothing=0.1,
    )


def test_changed_batches_are_the_same_bits_made_again_and_from_the_middle_of_an_epoch_on():
    made = changed_batches()
    first, again, later = list(made), list(changed_batches()), list(made.skip(6))  # of 4 an epoch
    for found, whole in ((again, first), (later, first[6:])):
        for (images, labels), (same_images, same_labels) in zip(found, whole, strict=True):
            np.testing.assert_array_equal(images, same_images)
            np.testing.assert_array_equal(labels, same_labels)


@pytest.mark.slow
def test_changed_batches_are_the_same_bits_in_another_process():
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
    return sha256(b"".join(part.numpy().tobytes() for batch in changed_batches() for part in batch)).hexdigest()


def test_mixing_changes_labels_in_the_batches():
    made = training_batches(
        Noise(),
        image_shape=(8, 8, 3),
        classes=5,
        batch_size=16,
        epochs=1,
        seed=3,
        augment=build_augmentation(mixup_alpha=5.0),
        label_smoothing=0.0,
    )
    labels = np.concatenate([labels for _, labels in made])
    assert (labels.max(axis=1) < 0.9).mean() > 0.5
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-6)
