"""Metrics of a classifier, on cases small enough to check by hand."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import balanced_accuracy_score, f1_score

from pipeline.evaluation import metrics
from pipeline.evaluation.metrics import (
    brier_score,
    expected_calibration_error,
    guessing,
    reliability_table,
)

# confidence 0.6 twice, once correct; 0.9 twice, both correct
PROBABILITIES = np.array([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.1, 0.9]])
LABELS = np.array([0, 1, 1, 1])


def test_balanced_accuracy_and_macro_f1_are_scikit_learns():
    labels, predicted = np.random.default_rng(0).integers(0, 4, (2, 50))
    labels[labels == 3] = 0  # predicted, but without images
    counts = metrics.ClassCounts.of_confusion(metrics.confusion_matrix(np.eye(4)[predicted], labels))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert metrics.balanced_accuracy(counts) == pytest.approx(balanced_accuracy_score(labels, predicted))
    expected = f1_score(labels, predicted, labels=[0, 1, 2], average="macro")
    assert metrics.macro_f1(counts) == pytest.approx(expected)


def test_balanced_accuracy_and_macro_f1_count_a_rare_class_like_the_others():
    counts = metrics.ClassCounts.of_confusion(np.array([[98, 0], [2, 0]]))
    assert metrics.balanced_accuracy(counts) == 0.5
    assert metrics.macro_f1(counts) == pytest.approx((2 * 98 / 198) / 2)


def test_recalls_leave_out_classes_without_images_and_have_names_that_mlflow_takes():
    counts = metrics.ClassCounts(np.array([4, 0, 2, 1]), np.array([4, 1, 1, 1]), np.array([3, 0, 1, 1]))
    assert metrics.recalls(counts, classes=["Köter", "fox", "a/b:c", "A.B c"]) == {
        "recall/Köter": 0.75,
        "recall/a_b_c": 0.5,
        "recall/A_B c": 1.0,
    }
    same = metrics.recalls(counts, classes=["..", "fox", "x?", "X!"])
    assert list(same) == ["recall/__", "recall/x__2", "recall/X__3"]


def test_guessing_by_accuracy_is_the_share_of_the_largest_class_and_two_standard_errors():
    assert guessing("val_accuracy", np.array([0, 0, 0, 1])) == pytest.approx(0.75 + 2 * np.sqrt(0.75 * 0.25 / 4))
    assert guessing("val_accuracy", np.arange(10).repeat(1000)) == pytest.approx(0.106)


def test_guessing_by_other_metrics_is_what_drawing_classes_reaches():
    labels = np.repeat([0, 1, 3], [60, 30, 10])
    drawn = np.random.default_rng(0).integers(0, 3, (400, 100))
    drawn[drawn == 2] = 3
    counts = [metrics.ClassCounts.of_confusion(metrics.confusion_matrix(np.eye(4)[one], labels)) for one in drawn]
    balanced = np.array([metrics.balanced_accuracy(one) for one in counts])
    assert guessing("val_balanced_accuracy", labels) == pytest.approx(1 / 3 + 2 * balanced.std(), abs=0.02)
    assert np.mean([metrics.macro_f1(one) > guessing("val_macro_f1", labels) for one in counts]) < 0.06
    shares = np.tile([0.6, 0.3, 0, 0.1], (100, 1))
    assert guessing("val_loss", labels) == pytest.approx(metrics.cross_entropy(shares, labels))
    assert guessing("val_loss", np.arange(10)) == pytest.approx(np.log(10))


def test_reliability_table_and_calibration_error_by_hand():
    table = reliability_table(PROBABILITIES, LABELS, bins=4)
    assert table["images"].tolist() == [0, 0, 2, 2]
    np.testing.assert_allclose(table["confidence"], [np.nan, np.nan, 0.6, 0.9])
    np.testing.assert_allclose(table["accuracy"], [np.nan, np.nan, 0.5, 1.0])
    assert expected_calibration_error(table) == pytest.approx((2 * 0.1 + 2 * 0.1) / 4)


def test_reliability_table_bins_include_their_upper_limit():
    limits = np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    assert reliability_table(limits, np.zeros(3, int), bins=4)["images"].tolist() == [0, 1, 1, 1]


def test_reliability_table_equals_scikit_learns_calibration_curve():
    random = np.random.default_rng(0)
    probabilities, labels = random.dirichlet(np.ones(5), 500), random.integers(0, 5, 500)
    correct = probabilities.argmax(axis=1) == labels
    accuracy, confidence = calibration_curve(correct, probabilities.max(axis=1), n_bins=15)
    table = reliability_table(probabilities, labels, bins=15).dropna()
    np.testing.assert_allclose(table["accuracy"], accuracy)
    np.testing.assert_allclose(table["confidence"], confidence)


def test_expected_calibration_error_of_a_calibrated_model_is_0():
    probabilities = np.tile([0.75, 0.25], (400, 1))
    labels = np.repeat([0, 0, 0, 1], 100)
    assert expected_calibration_error(reliability_table(probabilities, labels, bins=15)) == pytest.approx(0)
    assert expected_calibration_error(reliability_table(probabilities, 1 - labels, bins=15)) == pytest.approx(0.5)


def test_brier_score_by_hand():
    assert brier_score(PROBABILITIES, LABELS) == pytest.approx((2 * 0.16 + 2 * 0.36 + 4 * 0.01) / 4)
    assert brier_score(np.array([[1.0, 0.0]]), np.array([1])) == 2


THREE_LABELS = np.array([0, 0, 1, 1, 2])
THREE_PROBABILITIES = np.array(
    [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.9, 0.0], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]], dtype=np.float32
)


def test_accuracy_and_cross_entropy_by_hand():
    assert metrics.accuracy(THREE_PROBABILITIES, THREE_LABELS) == pytest.approx(3 / 5)
    assert metrics.cross_entropy(THREE_PROBABILITIES, THREE_LABELS) == pytest.approx(
        -np.log([0.8, 0.2, 0.9, 0.3, 0.5]).mean()
    )


def test_cross_entropy_of_a_certain_error_is_finite():
    for kind in (np.float32, np.float64):
        certain = np.array([[1.0, 0.0], [1.0, 1e-20]], kind)
        assert metrics.cross_entropy(certain[:1], np.array([1])) == pytest.approx(-np.log(2.0**-126))
        assert metrics.cross_entropy(certain[1:], np.array([1])) == pytest.approx(20 * np.log(10))


def test_confusion_matrix_has_labels_in_rows():
    np.testing.assert_array_equal(
        metrics.confusion_matrix(THREE_PROBABILITIES, THREE_LABELS), [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    )


def test_per_class_table_by_hand():
    table = metrics.per_class_table(np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]]), classes=["cat", "dog", "owl"])
    assert table["images"].tolist() == [4, 4, 0]
    np.testing.assert_allclose(table["recall"], [3 / 4, 2 / 4, np.nan])
    np.testing.assert_allclose(table["precision"], [3 / 5, 2 / 3, np.nan])
    np.testing.assert_allclose(table["f1"], [2 * 3 / 9, 2 * 2 / 7, np.nan])
    assert table["mistaken_for"].tolist() == ["dog", "cat", ""]


def test_most_confident_errors_are_sorted_and_limited():
    worst = metrics.most_confident_errors(THREE_PROBABILITIES, THREE_LABELS, most=5)
    assert worst.positions.tolist() == [1, 3]
    assert worst.true.tolist() == [0, 1]
    assert worst.predicted.tolist() == [1, 0]
    np.testing.assert_allclose(worst.confidence, [0.7, 0.6])
    assert metrics.most_confident_errors(THREE_PROBABILITIES, THREE_LABELS, most=1).positions.tolist() == [1]


def make_predictions_table(digests):
    images = np.array([bytes([number]) * 16 for number in digests], "S16")
    files = [f"{number}.png" for number in range(5)]
    return metrics.predictions_table(
        THREE_PROBABILITIES, THREE_LABELS, images=images, files=files, classes=["cat", "dog", "owl"]
    )


def test_predictions_table_has_file_digest_classes_and_the_probability_of_each():
    table = make_predictions_table([1, 1, 2, 3, 255])
    assert table["file"].tolist() == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert table["image"].tolist() == ["01" * 8, "01" * 8, "02" * 8, "03" * 8, "ff" * 8]
    assert table["label"].tolist() == THREE_LABELS.tolist()
    assert table["predicted"].tolist() == [0, 1, 1, 0, 2]
    assert table["predicted_class"].tolist() == ["cat", "dog", "dog", "cat", "owl"]
    assert table["class"].tolist() == [["cat", "dog", "owl"][label] for label in THREE_LABELS]
    np.testing.assert_allclose(table["probability_of_class"], [0.8, 0.2, 0.9, 0.3, 0.5])
    np.testing.assert_allclose(table["probability_of_predicted_class"], THREE_PROBABILITIES.max(axis=1))


def test_predictions_view_takes_the_same_images_of_every_model(monkeypatch):
    monkeypatch.setattr(metrics, "VIEW_IMAGES", 3)
    table = make_predictions_table([4, 2, 1, 5, 3])
    sample = metrics.predictions_view(table)
    assert sample["image"].tolist() == ["01" * 8, "02" * 8, "03" * 8]
    assert sample["image"].tolist() == metrics.predictions_view(table.sample(frac=1, random_state=0))["image"].tolist()
    assert sample["file"].tolist() == ["2.png", "1.png", "4.png"]
    assert sample.columns[:2].tolist() == ["file", "predicted_class"]
    of_arrays = metrics.predictions_view(table.assign(file=""))
    assert of_arrays.columns[:2].tolist() == ["image", "predicted_class"] and "file" not in of_arrays


def test_is_correct_compares_label_and_prediction():
    table = make_predictions_table(range(5))
    assert metrics.is_correct(table).tolist() == [True, False, True, False, True]


def test_most_confident_successes_take_turns_between_the_classes():
    right = [(0, 0.99), (0, 0.98), (0, 0.97), (1, 0.6), (1, 0.7)]
    probabilities = np.array([[p, 1 - p] if label == 0 else [1 - p, p] for label, p in right] + [[0.999, 0.001]])
    labels = np.array([label for label, _ in right] + [1])
    assert metrics.most_confident_successes(probabilities, labels, most=3).tolist() == [0, 4, 1]
    assert metrics.most_confident_successes(probabilities, labels, most=9).tolist() == [0, 4, 1, 3, 2]
    assert metrics.most_confident_successes(probabilities[5:], labels[5:], most=3).tolist() == []
