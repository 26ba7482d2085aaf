"""The scale of an axis for a searched setting."""

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.figures.axis_scale import NOT_DRAWN, OFF_ROOM, AxisScale, SettingRange, setting_scale


def scale(*values: object, span: SettingRange | None = None) -> AxisScale:
    return setting_scale(pd.DataFrame({"params.x": list(values)}), "x", {"x": span} if span else {})


def placed(made: AxisScale) -> dict[str, float]:
    return dict(zip(made.labels, made.ticks, strict=True))


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([True, False], ["false", "true"]),
        (["b", None, "a", 0.5], ["none", "0.5", "a", "b"]),
        ([None, None], ["none"]),
    ],
)
def test_setting_scale_of_words_and_booleans_gives_each_a_place_of_equal_width(values: list, labels: list[str]) -> None:
    made = scale(*values)
    assert made.categorical and made.labels == labels
    assert made.ticks == [(index + 0.5) / len(labels) for index in range(len(labels))]


def test_setting_scale_of_whole_numbers_is_to_scale() -> None:
    made = scale(10, 9, 9, 2)
    assert not made.categorical
    assert placed(made) == {"2": 0, "9": pytest.approx(7 / 8), "10": 1}
    assert made.places == pytest.approx([1, 7 / 8, 7 / 8, 0])
    assert placed(scale(0.25)) == {"0.25": 0.5}


@pytest.mark.parametrize(
    "values",
    [(1, 2, 4), (32, 64, 128, 256), (0.001, 0.003, 0.01), (1, 2, 100)],
    ids=["2", "doubled", "decades", "wide"],
)
def test_setting_scale_of_few_numbers_of_equal_ratio_or_of_decades_is_logarithmic(values: tuple) -> None:
    low, *_, high = np.log(values)
    assert scale(*values, span=SettingRange(values)).ticks == pytest.approx((np.log(values) - low) / (high - low))


def test_setting_scale_has_ticks_and_cells_for_values_that_no_trial_has_tried() -> None:
    made = scale(5, 5, span=SettingRange((3, 5, 7, 9)))
    assert placed(made) == pytest.approx({"3": 0, "5": 1 / 3, "7": 2 / 3, "9": 1})
    assert made.cells == 4 and made.cell().tolist() == [1, 1]
    ends = scale(0.01, 0.02, 0.03, span=SettingRange(None, 0.0001, 1.0, log=True))
    assert ends.places[0] == pytest.approx(0.5)
    words = scale("sgd", span=SettingRange(("sgd", "adamw", "lion")))
    assert words.labels == ["adamw", "lion", "sgd"] and words.places == pytest.approx([5 / 6])


def test_setting_scale_puts_none_beside_numbers_on_the_left_of_their_line() -> None:
    made = scale(1.0, None, 0.5, 0.5, None, 2.0, 2.0, span=SettingRange((None, 0.5, 1.0, 2.0)))
    assert made.labels == ["none", "0.5", "1", "2"]
    assert made.ticks[:2] == [0, OFF_ROOM] and made.ticks[3] == pytest.approx(1)
    assert made.places[1] == made.places[4] == 0


def test_setting_scale_of_many_numbers_is_linear_or_logarithmic() -> None:
    values = np.geomspace(1e-3, 1e-2, 21)
    logarithmic, plain = scale(*values, span=SettingRange(None, log=True)), scale(*values)
    assert logarithmic.places == pytest.approx(np.linspace(0, 1, 21))
    assert placed(logarithmic)["0.003"] == pytest.approx(np.log10(3))
    assert plain.places == pytest.approx((values - 1e-3) / (1e-2 - 1e-3))


@pytest.mark.parametrize("factor", [1.1, 1.5, 4, 30, 1e6])
@pytest.mark.parametrize("log", [True, False])
def test_setting_scale_of_numbers_has_2_to_12_ticks_within_the_axis(factor: float, log: bool) -> None:
    ticks = scale(*np.geomspace(0.013, 0.013 * factor, 20), span=SettingRange(None, log=log)).ticks
    assert 2 <= len(ticks) <= 12 and min(ticks) >= 0 and max(ticks) <= 1


def test_spread_centres_the_trials_of_a_category_on_its_tick_and_leaves_numbers_in_place() -> None:
    made = scale(*["a", "b", "c"] * 20, "d")
    spread = made.spread()
    assert len(set(spread)) == 61
    for label, tick in placed(made).items():
        of_label = spread[made.places == tick]
        assert of_label.mean() == pytest.approx(tick), label
        assert np.abs(of_label - tick).max() <= 0.25 / 4
    assert spread[-1] == made.places[-1]
    numbers = scale(*[3, 5, 7] * 20)
    assert np.array_equal(numbers.spread(), numbers.places)


def test_cell_of_a_range_includes_its_end() -> None:
    made = scale(*np.linspace(0, 1, 17))
    assert made.cell().tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 7]
    assert made.cell_ticks()[0] == -0.5
    few = scale(5, 3, 9)
    assert few.cell().tolist() == [1, 0, 2] and few.cell_ticks() == [0, 1, 2]


def test_setting_scale_puts_trials_without_the_setting_apart_from_those_where_it_is_none() -> None:
    made = scale(NOT_DRAWN, 1, None, 3, NOT_DRAWN, span=SettingRange((None, 1, 2, 3)))
    assert made.labels == ["none", NOT_DRAWN, "1", "2", "3"] and not made.categorical
    assert made.ticks[:3] == pytest.approx([0, OFF_ROOM, 2 * OFF_ROOM])
    assert made.places == pytest.approx([OFF_ROOM, 2 * OFF_ROOM, 0, 1, OFF_ROOM])
    assert made.cell().tolist() == [1, 2, 0, 4, 1]
    assert scale(NOT_DRAWN, "a", span=SettingRange(("a", "b"))).labels == [NOT_DRAWN, "a", "b"]
