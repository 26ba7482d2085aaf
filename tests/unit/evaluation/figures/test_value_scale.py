"""The scale of an axis for accuracies and losses."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.evaluation.figures.value_scale import accuracy_label, value_scale
from tests.support.figures import render


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.1, 0.9, 0.997], "error"),
        ([0.5, 0.997, np.nan], "error"),
        ([0.99, 0.997], "linear"),  # they differ enough as they are
        ([0.1, 0.97], "linear"),
        ([0.1, 0.12], "linear"),
        ([], "linear"),
    ],
)
def test_value_scale_of_accuracies_is_one_of_the_error_where_the_best_are_close_to_1(values, kind) -> None:
    assert value_scale(np.array(values), is_accuracy=True).kind == kind


@pytest.mark.parametrize(("values", "kind"), [([0.01, 1.0], "log"), ([0.1, 1.0], "linear"), ([np.inf, 1.0], "linear")])
def test_value_scale_of_losses_over_decades_is_logarithmic(values, kind) -> None:
    assert value_scale(np.array(values), is_accuracy=False, falls=True).kind == kind
    assert value_scale(np.array(values), is_accuracy=False).kind == "linear"


def test_value_scale_of_the_error_tells_99_7_from_99_8_and_has_a_place_for_1() -> None:
    values = np.array([0.5, 0.997, 0.998, 1.0])
    scale = value_scale(values, is_accuracy=True)
    axes = Figure(figsize=(4, 4), dpi=100).subplots()
    axes.plot(range(4), values)
    scale.apply(axes, values)
    render(axes.figure)  # type: ignore[arg-type]
    pixels = axes.transData.transform(np.column_stack([range(4), values]))[:, 1]
    assert pixels[2] - pixels[1] > 10
    assert axes.get_window_extent().y1 > pixels[3]
    low, high = axes.get_ylim()
    ticks = zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
    shown = [label.get_text() for label, at in ticks if low <= at <= high]
    assert {"99.5 %", "99.8 %", "99.9 %", "100 %"} < set(shown) and len(set(shown)) == len(shown)
    assert scale.inverse(scale.forward(values)) == pytest.approx(values)


def test_apply_shows_no_accuracy_above_1_and_no_hair_s_breadth() -> None:
    axes = Figure().subplots()
    axes.plot([1], [0.965], "o")
    value_scale(np.array([0.965]), is_accuracy=True).apply(axes, np.array([0.965]))
    assert axes.get_ylim() == pytest.approx((0.912, 1.002), abs=0.001)
    axes = Figure().subplots()
    axes.plot([1, 1], [0.5, 0.5001], "o")
    value_scale(np.array([0.5, 0.5001]), is_accuracy=True).apply(axes, np.array([0.5, 0.5001]))
    assert axes.get_ylim() == pytest.approx((0.49, 0.5101))


def test_accuracy_label_has_the_digits_it_needs() -> None:
    assert [accuracy_label(value) for value in (0.8, 0.995, 0.9985, 1)] == ["80 %", "99.5 %", "99.85 %", "100 %"]
