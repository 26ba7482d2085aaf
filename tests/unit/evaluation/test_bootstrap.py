"""The paired bootstrap of metrics over test images."""

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation import bootstrap
from pipeline.evaluation.bootstrap import RESAMPLES, measure, p_value, percentile_interval, resample
from pipeline.evaluation.metrics import (
    ClassCounts,
    balanced_accuracy,
    confusion_matrix,
    cross_entropy,
    macro_f1,
    predictions_table,
)
from pipeline.evaluation.significance import mcnemar_exact

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.choice(3, 300, p=[0.7, 0.2, 0.1])


def table(correct, labels=LABELS):
    """Return predictions that are correct where told, and name the next class elsewhere."""
    predicted = np.where(correct, labels, (labels + 1) % 3)
    return pd.DataFrame({"label": labels, "predicted": predicted, "probability_of_class": np.where(correct, 0.8, 0.1)})


def test_measure_equals_the_metrics_of_all_images():
    predictions = table(RANDOM.random(300) < 0.6)
    counts = ClassCounts.of_confusion(confusion_matrix(np.eye(3)[predictions["predicted"]], LABELS))
    assert measure("test_balanced_accuracy", predictions) == pytest.approx(float(balanced_accuracy(counts)))
    assert measure("test_macro_f1", predictions) == pytest.approx(float(macro_f1(counts)))
    assert measure("accuracy", predictions) == counts.correct.sum() / 300
    assert measure("loss", predictions) == pytest.approx(-np.log(predictions["probability_of_class"]).mean())


def test_loss_of_a_table_is_that_of_the_probabilities_also_of_confident_errors():
    of_label = np.array([0.9, 1e-12, 0.0], np.float32)
    probabilities = np.stack([of_label, 1 - of_label], axis=1)
    labels = np.zeros(3, np.int64)
    predictions = predictions_table(
        probabilities, labels, images=np.array([b"a", b"b", b"c"]), files=[""] * 3, classes=["cat", "dog"]
    )
    assert measure("test_loss", predictions) == pytest.approx(cross_entropy(probabilities, labels), rel=1e-5)


def test_interval_of_an_accuracy_is_that_of_its_standard_error():
    correct = np.arange(300) < 210
    low, high = percentile_interval(resample("accuracy", table(correct)))
    half_width = 1.96 * np.sqrt(0.7 * 0.3 / 300)
    assert (low, high) == pytest.approx((0.7 - half_width, 0.7 + half_width), abs=0.01)
    np.testing.assert_array_equal(resample("accuracy", table(correct)), resample("accuracy", table(correct)))


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1"])
def test_resamples_are_metrics_of_the_drawn_images(metric):
    predictions = table(RANDOM.random(300) < 0.6)
    values = resample(metric, predictions)
    assert values.shape == (RESAMPLES,)
    drawn = np.repeat(np.arange(300), bootstrap._weights(300)[:, 7])
    assert len(drawn) == 300
    assert values[7] == pytest.approx(measure(metric, predictions.iloc[drawn]))


@pytest.mark.parametrize(("first_only", "second_only"), [(5, 3), (20, 12), (12, 3), (30, 12), (60, 35)])
def test_verdict_on_accuracy_is_that_of_mcnemars_test(first_only, second_only):
    first, second = np.ones(300, bool), np.ones(300, bool)
    second[:first_only] = False
    first[first_only : first_only + second_only] = False
    differences = resample("accuracy", table(first)) - resample("accuracy", table(second))
    low, high = percentile_interval(differences)
    expected = mcnemar_exact(first_only, second_only)
    assert (low <= 0 <= high) == (expected >= 0.05)
    assert p_value(differences) == p_value(-differences) == pytest.approx(expected, abs=0.2)
    assert (p_value(differences) < 0.05) == (expected < 0.05)


def test_difference_that_rests_on_three_images_of_a_rare_class_is_within_noise():
    labels = np.repeat([0, 1, 2], [200, 200, 3])
    second = labels != 2
    values = [resample("balanced_accuracy", table(correct, labels)) for correct in (np.ones(403, bool), second)]
    low, high = percentile_interval(values[0] - values[1])
    assert low == 0 < high
