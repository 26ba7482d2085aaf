"""Accuracy that counts the images of each class."""

import keras
import numpy as np
import pytest

from pipeline.evaluation.metrics import ClassCounts, confusion_matrix
from pipeline.training.class_accuracy import ClassAccuracy, class_counts

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 4, 30)
PROBABILITIES = RANDOM.dirichlet(np.ones(4), 30).astype(np.float32)
BATCHES = [(np.eye(4, dtype=np.float32)[LABELS[part]], PROBABILITIES[part]) for part in np.split(np.arange(30), [20])]


def test_class_accuracy_counts_the_margins_and_the_diagonal_of_the_confusion_matrix():
    accuracy, keras_accuracy = ClassAccuracy(4), keras.metrics.CategoricalAccuracy()
    for one_hot, probabilities in BATCHES:
        accuracy.update_state(one_hot, probabilities)
        keras_accuracy.update_state(one_hot, probabilities)
    expected = ClassCounts.of_confusion(confusion_matrix(PROBABILITIES, LABELS))
    for counts, same in zip(accuracy.counts(), expected, strict=True):
        np.testing.assert_array_equal(counts, same)
    assert float(accuracy.result()) == float(keras_accuracy.result())
    assert float(accuracy.result()) == pytest.approx(expected.correct.sum() / 30)


def test_class_accuracy_counts_by_the_labels_that_come_before_targets():
    plain, with_targets = ClassAccuracy(4), ClassAccuracy(4)
    for one_hot, probabilities in BATCHES:
        plain.update_state(one_hot, probabilities)
        with_targets.update_state(np.hstack([one_hot, probabilities]), probabilities)
    for variable, same in zip(with_targets.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(variable, same)


def test_class_accuracy_after_a_reset_counts_anew():
    accuracy = ClassAccuracy(4)
    for one_hot, probabilities in BATCHES:
        accuracy.reset_state()
        accuracy.update_state(one_hot, probabilities)
    assert accuracy.counts().images.sum() == 10 and accuracy.variables[0].numpy() <= 10


def test_class_accuracy_weights_images_for_the_accuracy_and_not_for_the_counts():
    accuracy = ClassAccuracy(2)
    one_hot, probabilities = np.eye(2, dtype=np.float32), np.array([[0.9, 0.1], [0.8, 0.2]], np.float32)
    accuracy.update_state(one_hot, probabilities, sample_weight=np.array([3.0, 1.0]))
    assert accuracy.name == "accuracy" and float(accuracy.result()) == 0.75
    counts = accuracy.counts()
    assert [part.tolist() for part in counts] == [[1, 1], [2, 0], [1, 0]]
    assert {part.dtype for part in counts} == {np.dtype(np.int64)}


def test_class_counts_of_a_compiled_model_are_those_of_its_last_images():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
    model.compile("sgd", loss="categorical_crossentropy", metrics=["mae", ClassAccuracy(2)], run_eagerly=True)
    images, labels = np.array([[1.0, 0], [1, 0], [0, 1]]), np.eye(2)[[0, 1, 1]]
    for _ in range(2):
        model.evaluate(images, labels, verbose=0)
    assert [part.tolist() for part in class_counts(model)] == [[1, 2], [2, 1], [1, 1]]
