"""The figures of an evaluation."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from pipeline.evaluation.figures.robustness import (
    accuracy_by_strength,
    corrupted_examples,
    reliability_diagram,
)
from pipeline.evaluation.metrics import expected_calibration_error, reliability_table
from tests.support.figures import margins, title

SUBJECT = "digits, test split"


def bins(images=400):
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(4, 0.2), images)
    labels = np.where(random.random(images) < 0.6, probabilities.argmax(axis=1), random.integers(0, 4, images))
    return reliability_table(probabilities, labels, bins=15)


def corrupted(corruptions):
    return pd.DataFrame(
        [
            {"corruption": name, "strength": strength, "accuracy": 0.9 - 0.1 * strength - 0.02 * number}
            for number, name in enumerate(corruptions)
            for strength in (1, 2, 3)
        ]
    )


def test_reliability_diagram_bars_are_the_accuracies_of_bins_with_images():
    table = bins()
    figure = reliability_diagram(table, error=expected_calibration_error(table), subject=SUBJECT)
    upper, lower = figure.axes
    known = table.dropna()
    heights = [bar.get_height() for bar in upper.patches]
    np.testing.assert_allclose(heights[: len(known)], known["accuracy"])
    np.testing.assert_allclose(heights[len(known) :], (known["confidence"] - known["accuracy"]).abs())
    np.testing.assert_allclose([bar.get_height() for bar in lower.patches], table["images"] / 400)
    accuracy, confidence = ((known[name] * known["images"]).sum() / 400 for name in ("accuracy", "confidence"))
    legend = {text.get_text() for text in lower.get_legend().get_texts()}
    assert legend == {f"mean confidence {100 * confidence:.1f} %", f"accuracy {100 * accuracy:.1f} %"}
    assert f"expected calibration error {100 * expected_calibration_error(table):.1f} %" in title(figure)


def test_accuracy_by_strength_draws_a_line_a_corruption_and_the_clean_accuracy():
    table = corrupted(["gaussian_noise", "contrast"])
    figure = accuracy_by_strength(table, clean=0.95, subject=SUBJECT)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines) == ["clean", "gaussian noise", "contrast"]
    np.testing.assert_allclose(lines["contrast"].get_ydata(), [0.78, 0.68, 0.58])
    np.testing.assert_allclose(lines["clean"].get_ydata(), 0.95)
    assert "clean 95.0 %, mean over corruptions and strengths 69.0 %" in title(figure)


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 48, 3), (9, 4, 4)])
def test_corrupted_examples_have_a_row_a_corruption_and_the_clean_image_first(shape):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, *shape), np.uint8)
    figure = corrupted_examples(images, corruptions=["gaussian_noise", "contrast"], strengths=(1, 2, 3))
    assert [axes.get_title() for axes in figure.axes[:4]] == ["clean", "strength 1", "strength 2", "strength 3"]
    assert [axes.get_ylabel() for axes in figure.axes[::4]] == ["gaussian noise", "contrast"]
    np.testing.assert_array_equal(np.squeeze(figure.axes[6].images[0].get_array()), np.squeeze(images[1, 2]))
    assert min(margins(figure)) > 5


@pytest.mark.parametrize("subject", [SUBJECT, "a data set of many words " * 6, "$x_1^{$", "犬"])
def test_figures_cut_no_subject_off(subject):
    table = bins()
    for figure in (
        reliability_diagram(table, error=0.1, subject=subject),
        accuracy_by_strength(corrupted(["gaussian_noise", "jpeg_compression"]), clean=0.95, subject=subject),
    ):
        assert min(margins(figure)) > 5


def test_reliability_diagram_shows_that_a_bin_of_one_image_says_little():
    table = reliability_table(
        np.array([[0.95, 0.05]] * 100 + [[0.6, 0.4]]), np.array([0] * 95 + [1] * 5 + [0]), bins=10
    )
    figure = reliability_diagram(table, error=0.1, subject=SUBJECT)
    upper, lower = figure.axes
    (intervals,) = (group for group in upper.collections if isinstance(group, LineCollection))
    lengths = [segment[1, 1] - segment[0, 1] for segment in intervals.get_segments()]
    assert lengths[0] > 0.7 and lengths[1] < 0.1
    one, many = (bar.get_facecolor() for bar in upper.patches[:2])
    assert one == (1, 1, 1, 1) != many
    assert "hollow: fewer than 5 images" in title(figure)
    assert [text.get_text() for text in lower.texts if text.get_text()] == ["1", "100"]


@pytest.mark.parametrize(("clean", "lowest"), [(0.998, 0.9), (0.8, 0)])
def test_accuracy_by_strength_shows_what_differs_where_all_are_high(clean, lowest):
    table = pd.DataFrame({"corruption": "contrast", "strength": [1, 2], "accuracy": [clean - 0.001, clean - 0.01]})
    assert accuracy_by_strength(table, clean=clean, subject=SUBJECT).axes[0].get_ylim() == (lowest, 1)
