"""The scale of an axis for a searched setting."""

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.figures.axis_scale import AxisScale, setting_scale


def scale(*values: object, log: bool = False) -> AxisScale:
    return setting_scale(pd.DataFrame({"params.x": list(values)}), "x", log=log)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([10, 9, 9, 2], ["2", "9", "10"]),  # as numbers, not as words
        ([9, None, 10], ["none", "9", "10"]),  # pandas makes these floats
        ([True, False], ["false", "true"]),
        (["b", None, "a", 0.5], ["none", "0.5", "a", "b"]),
        ([0.25], ["0.25"]),
        ([0.1, 0.5, 0.1, 0.5], ["0.1", "0.5"]),
    ],
)
def test_setting_scale_of_categories_or_repeated_numbers_is_discrete_and_sorted(
    values: list, labels: list[str]
) -> None:
    made = scale(*values)
    assert made.discrete and made.labels == labels
    assert made.ticks == [(index + 0.5) / len(labels) for index in range(len(labels))]


def test_setting_scale_of_numbers_is_linear_or_logarithmic() -> None:
    values = np.geomspace(1e-4, 1e-2, 21)
    logarithmic, plain = scale(*values, log=True), scale(*values)
    assert logarithmic.places == pytest.approx(np.linspace(0, 1, 21))
    assert dict(zip(logarithmic.labels, logarithmic.ticks, strict=True))["0.001"] == pytest.approx(0.5)
    assert plain.places == pytest.approx((values - 1e-4) / (1e-2 - 1e-4))


@pytest.mark.parametrize("factor", [1.1, 1.5, 4, 30, 1e6])
@pytest.mark.parametrize("log", [True, False])
def test_setting_scale_of_numbers_has_2_to_12_ticks_within_the_axis(factor: float, log: bool) -> None:
    ticks = scale(*np.geomspace(0.013, 0.013 * factor, 20), log=log).ticks
    assert 2 <= len(ticks) <= 12 and min(ticks) >= 0 and max(ticks) <= 1


def test_spread_moves_equal_values_by_less_than_half_the_way_to_the_next() -> None:
    made = scale(*[3, 5, 7] * 20)
    spread = made.spread(pd.Series(range(60)))
    assert len(set(spread)) == 60
    assert np.abs(spread - made.places).max() < 0.25 / 3


def test_cell_of_a_range_includes_its_end() -> None:
    made = scale(*np.linspace(0, 1, 17), np.nan)
    assert made.cell().tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 7, -1]
    assert scale(5, 3, 9).cell().tolist() == [1, 0, 2]
