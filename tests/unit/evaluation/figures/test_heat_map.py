"""The best value for each pair of values of two settings."""

from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.figures.axis_scale import SettingRange
from pipeline.evaluation.figures.heat_map import heat_map
from tests.support.figures import render
from tests.support.studies import MAXIMIZED, MINIMIZED, SIX, table


def grid(arguments: dict[str, Any]) -> tuple[np.ndarray, dict[tuple[int, int], str]]:
    axes = heat_map(SIX, rows="kernel_size", columns="patch_size", **arguments).axes[0]
    words = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
    return np.ma.filled(np.ma.masked_invalid(axes.images[0].get_array()), np.nan), words  # type: ignore[arg-type]


def test_heat_map_cell_has_the_best_value_and_counts_without_duplicates() -> None:
    values, words = grid(MAXIMIZED)
    assert values == pytest.approx(np.array([[0.7, np.nan], [np.nan, 0.6]]), nan_ok=True)
    assert words == {(0, 0): "70.00 %\n2 of 3", (1, 0): "0 of 1", (1, 1): "60.00 %\n1 of 1"}
    assert grid(MINIMIZED)[0][0, 0] == 0.5


def test_heat_map_hatches_cells_without_a_finished_trial() -> None:
    figure = heat_map(SIX, rows="kernel_size", columns="patch_size", **MAXIMIZED)
    pixels = render(figure)[..., :3]
    area = figure.axes[0].get_window_extent()
    height, width = area.height / 2, area.width / 2

    def quarter(row: int, column: int) -> np.ndarray:
        top, left = pixels.shape[0] - area.y0 - (row + 1) * height, area.x0 + column * width
        return pixels[int(top + 8) : int(top + height / 4), int(left + 8) : int(left + width - 8)]

    assert len(np.unique(quarter(0, 1).reshape(-1, 3), axis=0)) > 2
    assert np.ptp(quarter(0, 1), axis=-1).max() == 0  # grey on white
    assert len(np.unique(quarter(1, 1).reshape(-1, 3), axis=0)) == 1
    assert np.ptp(quarter(1, 1), axis=-1).max() > 20  # the palest blue


def test_heat_map_cuts_a_log_range_into_eight_cells() -> None:
    trials = table(
        *[("complete", 0.5)] * 17, params_learning_rate=list(np.geomspace(1e-4, 1e-2, 17)), params_depth=[4] * 17
    )
    arguments = MAXIMIZED | {"rows": "depth", "columns": "learning_rate"}
    space = {"learning_rate": SettingRange(None, 1e-4, 1e-2, log=True)}
    axes = heat_map(trials, **arguments | {"space": space}).axes[0]
    assert [text.get_text().split("\n")[1] for text in axes.texts] == ["2 of 2"] * 7 + ["3 of 3"]
    ticks = dict(zip([label.get_text() for label in axes.get_xticklabels()], axes.get_xticks(), strict=True))
    assert ticks["0.001"] == pytest.approx(3.5)  # the edge between the fourth cell and the fifth


@pytest.mark.parametrize(("rows", "columns"), [("dept", "kernel_size"), ("kernel_size", "kernel_size")])
def test_heat_map_of_anything_but_two_searched_settings_raises(rows: str, columns: str) -> None:
    with pytest.raises(ValueError, match=f"settings of kernel_size, patch_size, got '{rows}' and '{columns}'"):
        heat_map(SIX, rows=rows, columns=columns, **MAXIMIZED)


def test_heat_map_has_a_cell_for_each_untried_value_and_names_what_is_infeasible() -> None:
    trials = SIX.assign(state=["complete", "complete", "pruned", "duplicate", "infeasible", "complete"])
    arguments = MAXIMIZED | {"space": {"patch_size": SettingRange((1, 2, 4))}}
    figure = heat_map(trials, rows="kernel_size", columns="patch_size", **arguments)
    assert np.shape(figure.axes[0].images[0].get_array()) == (2, 3)
    assert [text.get_text() for text in figure.axes[0].texts] == ["70.00 %\n2 of 3", "infeasible", "60.00 %\n1 of 1"]
    assert len(figure.axes) == 1, "the values stand in the cells"
