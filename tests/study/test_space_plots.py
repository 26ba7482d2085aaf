"""What the pictures of a search space show."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from made_study import made_study, table
from matplotlib.collections import LineCollection
from pictures import drawn

from pipeline.study import space_plots

ASKED: dict[str, Any] = {"metric": "val_accuracy", "direction": "maximize", "log": []}
LOSS = ASKED | {"metric": "val_loss", "direction": "minimize"}
SIX = table(
    ("complete", 0.5),
    ("complete", 0.7),
    ("pruned", 0.9),
    ("duplicate", 0.7),
    ("failed", np.nan),
    ("complete", 0.6),
    params_kernel_size=[3, 3, 3, 3, 5, 5],
    params_patch_size=[1, 1, 1, 1, 1, 2],
)


# Parallel coordinates


@pytest.mark.parametrize(("asked", "best"), [(ASKED, 0.7), (LOSS, 0.5)])
def test_the_best_is_on_top_of_the_metrics_axis_in_either_direction(asked: dict[str, Any], best: float) -> None:
    axes = space_plots.parallel_coordinates(SIX, **asked).axes[0]
    (thick,) = (line for line in axes.lines if line.get_linewidth() == 2.5)
    assert thick.get_ydata()[-1] == 1
    written = {text.get_text().removesuffix(" %"): text.xy[1] for text in axes.texts if hasattr(text, "xy")}
    assert written[f"{100 * best:g}" if asked is ASKED else f"{best:g}"] == pytest.approx(1)


def test_only_finished_trials_have_a_line_and_the_better_are_drawn_later() -> None:
    trials, _ = made_study(100)
    axes = space_plots.parallel_coordinates(trials, **ASKED).axes[0]
    (others,) = (group for group in axes.collections if isinstance(group, LineCollection))
    ends = [segment[-1, 1] for segment in others.get_segments()]
    assert len(ends) == (trials["state"] == "complete").sum() - 1
    assert ends == sorted(ends)


def test_some_trials_that_learnt_nothing_leave_the_others_their_colours() -> None:
    good = [("complete", value) for value in np.linspace(0.7, 0.8, 20)]
    trials = table(("complete", 0.1), *good, params_depth=list(range(21)))
    bar = space_plots.parallel_coordinates(trials, **ASKED).axes[1]
    assert bar.get_ylim() == pytest.approx((0.7, 0.8), abs=0.01)


# Slices


def test_each_setting_has_a_panel_with_the_finished_as_dots_and_the_pruned_as_crosses() -> None:
    figure = space_plots.slices(SIX, **ASKED)
    kernel, patch = figure.axes[:2]
    assert [kernel.get_xlabel(), patch.get_xlabel()] == ["kernel_size", "patch_size"]
    dots = np.asarray(kernel.collections[0].get_offsets())
    assert dots[:, 1].tolist() == [0.5, 0.7, 0.6]
    assert dots[:, 0] == pytest.approx([0.25, 0.25, 0.75], abs=0.1)  # 3, 3, 5 and a little apart
    assert list(kernel.lines[0].get_ydata()) == [0.9]


def test_later_trials_are_darker() -> None:
    trials, _ = made_study(50)
    figure = space_plots.slices(trials, **ASKED)
    drawn(figure)
    brightness = figure.axes[0].collections[0].get_facecolors()[:, :3].sum(axis=1)  # type: ignore[attr-defined]
    assert (np.diff(brightness) <= 0).all() and np.ptp(brightness) > 1


def test_tick_labels_do_not_touch() -> None:
    trials, _ = made_study(300, every_kind=True)
    figure = space_plots.slices(trials, **ASKED | {"log": ["learning_rate", "weight_decay"]})
    drawn(figure)
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes)), axes.get_xlabel()


# Heat map


def grid(asked: dict[str, Any]) -> tuple[np.ndarray, dict[tuple[int, int], str]]:
    axes = space_plots.heat_map(SIX, rows="kernel_size", columns="patch_size", **asked).axes[0]
    words = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
    return np.ma.filled(np.ma.masked_invalid(axes.images[0].get_array()), np.nan), words  # type: ignore[arg-type]


def test_a_cell_has_the_best_finished_value_and_counts_the_finished_and_the_tried_but_no_duplicates() -> None:
    values, words = grid(ASKED)
    assert values == pytest.approx(np.array([[0.7, np.nan], [np.nan, 0.6]]), nan_ok=True)
    assert words == {(0, 0): "70.0 %\n2 of 3", (1, 0): "0 of 1", (1, 1): "60.0 %\n1 of 1"}
    assert grid(LOSS)[0][0, 0] == 0.5


def test_a_cell_in_which_nothing_finished_is_hatched_unlike_the_worst_value() -> None:
    figure = space_plots.heat_map(SIX, rows="kernel_size", columns="patch_size", **ASKED)
    pixels = drawn(figure)[..., :3]
    area = figure.axes[0].get_window_extent()
    height, width = area.height / 2, area.width / 2

    def quarter(row: int, column: int) -> np.ndarray:
        top, left = pixels.shape[0] - area.y0 - (row + 1) * height, area.x0 + column * width
        return pixels[int(top + 8) : int(top + height / 4), int(left + 8) : int(left + width - 8)]

    assert len(np.unique(quarter(0, 1).reshape(-1, 3), axis=0)) > 2
    assert np.ptp(quarter(0, 1), axis=-1).max() == 0  # grey on white
    assert len(np.unique(quarter(1, 1).reshape(-1, 3), axis=0)) == 1
    assert np.ptp(quarter(1, 1), axis=-1).max() > 20  # the palest blue


def test_a_range_is_cut_into_eight_cells_of_its_logarithm() -> None:
    trials = table(
        *[("complete", 0.5)] * 17, params_learning_rate=list(np.geomspace(1e-4, 1e-2, 17)), params_depth=[4] * 17
    )
    asked = ASKED | {"rows": "depth", "columns": "learning_rate"}
    axes = space_plots.heat_map(trials, **asked | {"log": ["learning_rate"]}).axes[0]
    assert [text.get_text().split("\n")[1] for text in axes.texts] == ["2 of 2"] * 7 + ["3 of 3"]
    ticks = dict(zip([label.get_text() for label in axes.get_xticklabels()], axes.get_xticks(), strict=True))
    assert ticks["0.001"] == pytest.approx(3.5)  # the edge between the fourth cell and the fifth


@pytest.mark.parametrize(("rows", "columns"), [("dept", "kernel_size"), ("kernel_size", "kernel_size")])
def test_anything_but_two_searched_settings_is_refused_with_those_there_are(rows: str, columns: str) -> None:
    with pytest.raises(ValueError, match=f"settings of kernel_size, patch_size: got '{rows}' and '{columns}'"):
        space_plots.heat_map(SIX, rows=rows, columns=columns, **ASKED)
