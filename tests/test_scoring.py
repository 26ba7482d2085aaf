"""Figures of a classifier, on cases small enough to check by hand."""

import numpy as np
import pytest

from pipeline import scoring

LABELS = np.array([0, 0, 1, 1, 2])
PROBABILITIES = np.array(
    [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.9, 0.0], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]], dtype=np.float32
)


def test_accuracy_and_cross_entropy_by_hand():
    assert scoring.accuracy(PROBABILITIES, LABELS) == pytest.approx(3 / 5)
    assert scoring.cross_entropy(PROBABILITIES, LABELS) == pytest.approx(-np.log([0.8, 0.2, 0.9, 0.3, 0.5]).mean())


def test_a_certain_mistake_costs_a_finite_loss():
    assert scoring.cross_entropy(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(-np.log(1e-7))


def test_confusion_has_the_truth_in_rows():
    np.testing.assert_array_equal(scoring.confusion(PROBABILITIES, LABELS), [[1, 1, 0], [1, 1, 0], [0, 0, 1]])


def test_per_class_figures_by_hand():
    table = scoring.per_class(np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]]), classes=["cat", "dog", "owl"])
    assert table["images"].tolist() == [4, 4, 0]
    np.testing.assert_allclose(table["recall"], [3 / 4, 2 / 4, np.nan])
    np.testing.assert_allclose(table["precision"], [3 / 5, 2 / 3, np.nan])
    np.testing.assert_allclose(table["f1"], [2 * 3 / 9, 2 * 2 / 7, np.nan])
    assert table["mistaken_for"].tolist() == ["dog", "cat", ""]


def test_mistakes_come_most_confident_first():
    worst = scoring.mistakes(PROBABILITIES, LABELS, most=5)
    assert worst.positions.tolist() == [1, 3]
    assert worst.true.tolist() == [0, 1]
    assert worst.predicted.tolist() == [1, 0]
    np.testing.assert_allclose(worst.confidence, [0.7, 0.6])
    assert scoring.mistakes(PROBABILITIES, LABELS, most=1).positions.tolist() == [1]


def test_predictions_tell_of_each_image_which_it_is_and_how_likely_its_label_was_thought():
    images = np.array([bytes([number]) * 16 for number in (1, 1, 2, 3, 255)], "S16")
    table = scoring.predictions(PROBABILITIES, LABELS, images=images)
    assert table["image"].tolist() == ["01" * 8, "01" * 8, "02" * 8, "03" * 8, "ff" * 8]
    assert table["label"].tolist() == LABELS.tolist()
    assert table["predicted"].tolist() == [0, 1, 1, 0, 2]
    np.testing.assert_allclose(table["probability"], [0.8, 0.2, 0.9, 0.3, 0.5])
