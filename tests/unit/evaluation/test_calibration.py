"""Temperature scaling."""

import numpy as np
import pytest

from pipeline.evaluation.calibration import HIGHEST, LOWEST, fit_temperature, measure_scaled, scale_probabilities
from pipeline.evaluation.metrics import cross_entropy


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def drawn(images, *, temperature):
    """Return probabilities of which the logits are `temperature` times those that the labels are drawn by."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 1.5, (images, 5))
    true = softmax(logits)
    labels = (random.random((images, 1)) > true.cumsum(axis=1)).sum(axis=1)
    return softmax(temperature * logits).astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_fit_temperature_finds_what_the_logits_were_multiplied_by(temperature):
    probabilities, labels = drawn(20_000, temperature=temperature)
    found = fit_temperature(probabilities, labels)
    assert found == pytest.approx(temperature, rel=0.03)
    best = cross_entropy(scale_probabilities(probabilities, found), labels)
    for other in (0.98 * found, 1.02 * found):
        assert cross_entropy(scale_probabilities(probabilities, other), labels) > best


def test_fit_temperature_of_predictions_that_are_all_right_or_all_wrong_stays_within_bounds():
    probabilities = np.array([[1.0, 0.0], [0.7, 0.3]] * 10, np.float32)
    right, wrong = np.zeros(20, np.int64), np.ones(20, np.int64)
    assert fit_temperature(probabilities, right) == pytest.approx(LOWEST, rel=1e-3)
    assert fit_temperature(probabilities, wrong) == pytest.approx(HIGHEST, rel=1e-3)


@pytest.mark.parametrize("temperature", [0.3, 4.0])
def test_scale_probabilities_changes_no_predicted_class(temperature):
    probabilities, _ = drawn(2000, temperature=8.0)
    scaled = scale_probabilities(probabilities, temperature)
    np.testing.assert_array_equal(scaled.argmax(axis=1), probabilities.argmax(axis=1))
    np.testing.assert_allclose(scaled.sum(axis=1), 1)
    np.testing.assert_allclose(scale_probabilities(probabilities, 1.0), probabilities, atol=1e-6)


def test_measure_scaled_of_an_overconfident_model_lowers_its_calibration_error():
    probabilities, labels = drawn(5000, temperature=3.0)
    before, after = (measure_scaled(probabilities, labels, value, bins=15) for value in (1.0, 3.0))
    assert after.metrics["temperature"] == 3.0
    assert after.metrics["scaled_ece"] < 0.02 < 0.1 < before.metrics["scaled_ece"]
    assert after.metrics["scaled_nll"] < before.metrics["scaled_nll"]
    assert after.metrics["scaled_brier_score"] < before.metrics["scaled_brier_score"]
    assert after.reliability["images"].sum() == 5000
