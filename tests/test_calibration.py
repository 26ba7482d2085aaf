"""How sure a classifier is beside how often it is right, on cases small enough to check by hand."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from pipeline.calibration import brier_score, expected_calibration_error, reliability

# confidence 0.6 twice, once right; 0.9 twice, both right
PROBABILITIES = np.array([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.1, 0.9]])
LABELS = np.array([0, 1, 1, 1])


def test_bins_and_their_error_by_hand():
    table = reliability(PROBABILITIES, LABELS, bins=4)
    assert table["images"].tolist() == [0, 0, 2, 2]
    np.testing.assert_allclose(table["confidence"], [np.nan, np.nan, 0.6, 0.9])
    np.testing.assert_allclose(table["accuracy"], [np.nan, np.nan, 0.5, 1.0])
    assert expected_calibration_error(table) == pytest.approx((2 * 0.1 + 2 * 0.1) / 4)


def test_a_bin_holds_its_upper_limit_and_the_last_one_certainty():
    limits = np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    assert reliability(limits, np.zeros(3, int), bins=4)["images"].tolist() == [0, 1, 1, 1]


def test_bins_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    probabilities, labels = random.dirichlet(np.ones(5), 500), random.integers(0, 5, 500)
    right = probabilities.argmax(axis=1) == labels
    accuracy, confidence = calibration_curve(right, probabilities.max(axis=1), n_bins=15)
    table = reliability(probabilities, labels, bins=15).dropna()
    np.testing.assert_allclose(table["accuracy"], accuracy)
    np.testing.assert_allclose(table["confidence"], confidence)


def test_who_is_as_often_right_as_sure_has_no_calibration_error():
    probabilities = np.tile([0.75, 0.25], (400, 1))
    labels = np.repeat([0, 0, 0, 1], 100)
    assert expected_calibration_error(reliability(probabilities, labels, bins=15)) == pytest.approx(0)
    assert expected_calibration_error(reliability(probabilities, 1 - labels, bins=15)) == pytest.approx(0.5)


def test_brier_score_by_hand():
    assert brier_score(PROBABILITIES, LABELS) == pytest.approx((2 * 0.16 + 2 * 0.36 + 4 * 0.01) / 4)
    assert brier_score(np.array([[1.0, 0.0]]), np.array([1])) == 2
