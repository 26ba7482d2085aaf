"""The style that all figures share."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.evaluation.figures import style
from tests.support.figures import margins, title


def test_finite_or_nan_replaces_infinite_values():
    np.testing.assert_array_equal(style.finite_or_nan([1, np.inf, -np.inf, np.nan]), [1, np.nan, np.nan, np.nan])


@pytest.mark.parametrize(
    ("values", "expected"), [([0.01, 1.0], True), ([0.1, 1.0], False), ([0.0, 1.0], False), ([], False)]
)
def test_spans_decades_of_positive_values_beyond_a_factor_of_20(values, expected):
    assert style.spans_decades(np.array(values)) is expected


def test_ellipsize_fits_the_width_and_keeps_both_ends():
    name = "a name that is " + "very " * 20 + "long"
    short = style.ellipsize(name, 1.5, 10)
    assert style.text_width(short, 10) <= 1.5
    assert short.startswith("a name") and short.endswith("long") and "…" in short
    assert style.ellipsize("two\nlines", 5, 10) == "two lines"


def test_text_figure_holds_the_text_within_its_edges():
    figure = style.text_figure("No trial has finished")
    assert title(figure).strip() == "No trial has finished"
    assert min(margins(figure)) > 5


def test_axes_at_places_axes_in_inches():
    figure = Figure(figsize=(8, 4))
    axes = style.axes_at(figure, 2, 1, 4, 2)
    assert axes.get_position().bounds == pytest.approx((0.25, 0.25, 0.5, 0.5))
