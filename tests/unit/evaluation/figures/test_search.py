"""The figures of a search."""

import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.text import Text

from pipeline.evaluation.figures import search
from pipeline.evaluation.figures.style import VERMILLION
from pipeline.evaluation.ranking import finished, pareto_front
from tests.support.figures import margins, render, title
from tests.support.studies import make_study, table

MAXIMIZED: dict[str, Any] = {"metric": "val_accuracy", "direction": "maximize", "log": []}
MINIMIZED = MAXIMIZED | {"metric": "val_loss", "direction": "minimize"}
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


@pytest.mark.parametrize(("arguments", "best"), [(MAXIMIZED, 0.7), (MINIMIZED, 0.5)])
def test_parallel_coordinates_put_the_best_on_top_in_either_direction(arguments: dict[str, Any], best: float) -> None:
    axes = search.parallel_coordinates(SIX, **arguments).axes[0]
    (thick,) = (line for line in axes.lines if line.get_linewidth() == 2.5)
    assert thick.get_ydata()[-1] == 1
    written = {text.get_text().removesuffix(" %"): text.xy[1] for text in axes.texts if hasattr(text, "xy")}
    assert written[f"{100 * best:g}" if arguments is MAXIMIZED else f"{best:g}"] == pytest.approx(1)


def test_parallel_coordinates_draw_finished_trials_only_the_better_later() -> None:
    trials, _ = make_study(100)
    axes = search.parallel_coordinates(trials, **MAXIMIZED).axes[0]
    (others,) = (group for group in axes.collections if isinstance(group, LineCollection))
    ends = [segment[-1, 1] for segment in others.get_segments()]
    assert len(ends) == (trials["state"] == "complete").sum() - 1
    assert ends == sorted(ends)


def test_parallel_coordinates_colors_ignore_the_worst_tenth() -> None:
    good = [("complete", value) for value in np.linspace(0.7, 0.8, 20)]
    trials = table(("complete", 0.1), *good, params_depth=list(range(21)))
    bar = search.parallel_coordinates(trials, **MAXIMIZED).axes[1]
    assert bar.get_ylim() == pytest.approx((0.7, 0.8), abs=0.01)


# Slices


def test_slices_have_a_panel_for_each_setting_with_finished_and_pruned_trials() -> None:
    figure = search.slices(SIX, **MAXIMIZED)
    kernel, patch = figure.axes[:2]
    assert [kernel.get_xlabel(), patch.get_xlabel()] == ["kernel_size", "patch_size"]
    dots = np.asarray(kernel.collections[0].get_offsets())
    assert dots[:, 1].tolist() == [0.5, 0.7, 0.6]
    assert dots[:, 0] == pytest.approx([0.25, 0.25, 0.75], abs=0.1)  # 3, 3, 5 and a little apart
    assert list(kernel.lines[0].get_ydata()) == [0.9]


def test_slices_draw_later_trials_darker() -> None:
    trials, _ = make_study(50)
    figure = search.slices(trials, **MAXIMIZED)
    render(figure)
    brightness = figure.axes[0].collections[0].get_facecolors()[:, :3].sum(axis=1)  # type: ignore[attr-defined]
    assert (np.diff(brightness) <= 0).all() and np.ptp(brightness) > 1


def test_slices_tick_labels_do_not_touch() -> None:
    trials, _ = make_study(300, every_kind=True)
    figure = search.slices(trials, **MAXIMIZED | {"log": ["learning_rate", "weight_decay"]})
    render(figure)
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes)), axes.get_xlabel()


# Heat map


def grid(arguments: dict[str, Any]) -> tuple[np.ndarray, dict[tuple[int, int], str]]:
    axes = search.heat_map(SIX, rows="kernel_size", columns="patch_size", **arguments).axes[0]
    words = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
    return np.ma.filled(np.ma.masked_invalid(axes.images[0].get_array()), np.nan), words  # type: ignore[arg-type]


def test_heat_map_cell_has_the_best_value_and_counts_without_duplicates() -> None:
    values, words = grid(MAXIMIZED)
    assert values == pytest.approx(np.array([[0.7, np.nan], [np.nan, 0.6]]), nan_ok=True)
    assert words == {(0, 0): "70.0 %\n2 of 3", (1, 0): "0 of 1", (1, 1): "60.0 %\n1 of 1"}
    assert grid(MINIMIZED)[0][0, 0] == 0.5


def test_heat_map_hatches_cells_without_a_finished_trial() -> None:
    figure = search.heat_map(SIX, rows="kernel_size", columns="patch_size", **MAXIMIZED)
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
    axes = search.heat_map(trials, **arguments | {"log": ["learning_rate"]}).axes[0]
    assert [text.get_text().split("\n")[1] for text in axes.texts] == ["2 of 2"] * 7 + ["3 of 3"]
    ticks = dict(zip([label.get_text() for label in axes.get_xticklabels()], axes.get_xticks(), strict=True))
    assert ticks["0.001"] == pytest.approx(3.5)  # the edge between the fourth cell and the fifth


@pytest.mark.parametrize(("rows", "columns"), [("dept", "kernel_size"), ("kernel_size", "kernel_size")])
def test_heat_map_of_anything_but_two_searched_settings_raises(rows: str, columns: str) -> None:
    with pytest.raises(ValueError, match=f"settings of kernel_size, patch_size, got '{rows}' and '{columns}'"):
        search.heat_map(SIX, rows=rows, columns=columns, **MAXIMIZED)


ACCURACY: dict[str, Any] = {"metric": "val_accuracy", "direction": "maximize"}


def draw_figures(trials: pd.DataFrame, curves: dict[int, list[float]], **arguments: Any) -> dict[str, Figure]:
    """Draw every figure of a study that needs no importances."""
    log = ["learning_rate", "weight_decay"]
    return {
        "history": search.optimization_history(trials, **arguments),
        "curves": search.intermediate_curves(curves, trials, **arguments),
        "front": search.value_vs_cost(trials, **arguments),
        "parallel": search.parallel_coordinates(trials, log=log, **arguments),
        "slices": search.slices(trials, log=log, **arguments),
        "grid": search.heat_map(trials, rows="kernel_size", columns="patch_size", log=log, **arguments),
        "ranges": search.heat_map(trials, rows="depth", columns="learning_rate", log=log, **arguments),
    }


def points(axes: Axes, label: str) -> list[list[float]]:
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return np.asarray(line.get_xydata()).tolist()


# History


def test_optimization_history_best_so_far_counts_finished_trials_up_to_the_last_one() -> None:
    trials = table(
        ("failed", np.nan), ("complete", 0.5), ("pruned", 0.9), ("complete", 0.7), ("complete", 0.6), ("pruned", 0.2)
    )
    axes = search.optimization_history(trials, **ACCURACY).axes[0]
    assert points(axes, "best so far") == [[1, 0.5], [3, 0.7], [4, 0.7], [5, 0.7]]
    assert points(axes, "complete") == [[1, 0.5], [3, 0.7], [4, 0.6]]
    assert points(axes, "pruned") == [[2, 0.9], [5, 0.2]]


def test_optimization_history_best_so_far_falls_if_minimized() -> None:
    trials = table(("complete", 0.5), ("complete", 0.7), ("complete", 0.4))
    axes = search.optimization_history(trials, metric="val_loss", direction="minimize").axes[0]
    assert points(axes, "best so far")[:3] == [[0, 0.5], [1, 0.5], [2, 0.4]]


def test_optimization_history_marks_trials_without_a_value_below_by_state() -> None:
    trials = table(
        ("complete", 0.5), ("failed", np.nan), ("infeasible", np.nan), ("pruned", np.nan), ("failed", np.nan)
    )
    below = search.optimization_history(trials, **ACCURACY).axes[1]
    names = [label.get_text() for label in below.get_yticklabels()]
    rows = {names[int(line.get_ydata()[0])]: list(line.get_xdata()) for line in below.lines}
    assert rows == {"pruned": [3], "failed": [1, 4], "infeasible": [2]}
    assert len(search.optimization_history(trials[:1], **ACCURACY).axes) == 1


def test_optimization_history_draws_an_unknown_state() -> None:
    axes = search.optimization_history(table(("complete", 0.5), ("running", 0.4)), **ACCURACY).axes[0]
    assert points(axes, "running") == [[1, 0.4]]


# Curves


def test_intermediate_curves_mark_where_unfinished_trials_ended() -> None:
    trials = table(("complete", 0.5), ("pruned", 0.3), ("failed", np.nan), ("complete", 0.6))
    curves = {0: [0.1, 0.5], 1: [0.2, 0.3], 2: [0.15, np.nan], 3: [0.3, 0.6], 99: [0.9, 0.9]}
    axes = search.intermediate_curves(curves, trials, **ACCURACY).axes[0]
    assert points(axes, "pruned (where it ended)") == [[2, 0.3]]
    assert points(axes, "failed (where it ended)") == [[1, 0.15]]
    assert points(axes, "best: trial 3") == [[1, 0.3], [2, 0.6]]
    finished_lines, pruned_lines, _ = (group for group in axes.collections if isinstance(group, LineCollection))
    assert finished_lines.get_segments()[0].tolist() == [[1, 0.1], [2, 0.5]]
    assert pruned_lines.get_alpha() < finished_lines.get_alpha()  # type: ignore[operator]


def test_intermediate_curves_need_no_finished_trial() -> None:
    figure = search.intermediate_curves({0: [0.1, 0.2]}, table(("pruned", 0.2)), **ACCURACY)
    assert points(figure.axes[0], "pruned (where it ended)") == [[2, 0.2]]
    assert "no trial has finished" in title(figure)


# Importances


def test_parameter_importances_put_the_largest_share_on_top() -> None:
    axes = search.parameter_importances({"depth": 0.25, "patch_size": 0.75}, metric="val_accuracy").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["patch_size", "depth"]
    assert axes.yaxis_inverted()
    assert [text.get_text() for text in axes.texts] == ["75.0 %", "25.0 %"]


def test_parameter_importances_of_too_few_trials_are_a_text() -> None:
    assert "Not enough trials" in title(search.parameter_importances({}, metric="val_accuracy"))
    render(search.parameter_importances({"depth": np.nan}, metric="val_accuracy"))


# Pareto front


def test_value_vs_cost_names_the_front_by_the_settings_that_differ() -> None:
    trials = table(
        *[("complete", value) for value in (0.5, 0.7, 0.6, 0.8)],
        params_kernel_size=[3, 5, 7, 9],
        params_patch_size=[2, 2, 2, 2],
        params_depth=[4, 8, 8, 12],
        parameters=[100_000, 300_000, 400_000, 1_000_000],
    )
    axes = search.value_vs_cost(trials, **ACCURACY).axes[0]
    assert axes.get_xscale() == "log"
    assert points(axes, "Pareto front") == [
        [pytest.approx(size), value] for size, value in ((1e5, 0.5), (3e5, 0.7), (1e6, 0.8))
    ]
    assert [text.get_text() for text in axes.texts] == ["k3 d4", "k5 d8", "k9 d12"]


def test_value_vs_cost_names_members_with_long_settings_by_trial_number() -> None:
    trials, _ = make_study(12, every_kind=True)
    front = pareto_front(trials, direction="maximize", cost="parameters")
    axes = search.value_vs_cost(trials, **ACCURACY).axes[0]
    assert [text.get_text() for text in axes.texts] == [f"t{number:03d}" for number in front]


def test_value_vs_cost_names_more_than_six_members_by_trial_number() -> None:
    values, sizes = np.linspace(0.5, 0.8, 7), np.geomspace(1e5, 1e6, 7)
    trials = table(
        *[("complete", value) for value in values],
        params_depth=list(range(7)),
        parameters=list(sizes),
        latency_ms=[np.nan] * 6 + [2.0],
    )
    axes = search.value_vs_cost(trials, **ACCURACY).axes[0]
    assert [text.get_text() for text in axes.texts] == [*(f"t{number:03d}" for number in range(6)), "t006, 2 ms"]
    axes = search.value_vs_cost(trials[1:], **ACCURACY).axes[0]
    assert [text.get_text() for text in axes.texts] == [*(f"d{depth}" for depth in range(1, 6)), "d6, 2 ms"]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("crowded", [False, True])
def test_value_vs_cost_names_cover_neither_each_other_nor_a_trial(direction: str, crowded: bool) -> None:
    trials, _ = make_study(300)
    if crowded:  # forty members in a corner
        trials.loc[:39, "state"] = "complete"
        trials.loc[:39, "value"] = np.linspace(0.90, 0.91, 40)
        trials.loc[:39, "parameters"] = np.arange(250_000, 250_040)
    if direction == "minimize":
        trials["value"] = 1 - trials["value"]
    figure = search.value_vs_cost(trials, metric="x", direction=direction)  # type: ignore[arg-type]
    render(figure)
    axes = figure.axes[0]
    # the texts alone: the extent of an annotation includes its line
    boxes = [Text.get_window_extent(text).padded(-1) for text in axes.texts]
    assert len(boxes) == len(pareto_front(trials, direction=direction, cost="parameters"))  # type: ignore[arg-type]
    assert not any(box.overlaps(other) for index, box in enumerate(boxes) for other in boxes[:index])
    done = finished(trials)
    dots = axes.transData.transform(done[["parameters", "value"]].to_numpy(float))
    assert not any(box.contains(x, y) for box in boxes for x, y in dots)
    area = axes.get_window_extent()
    assert all(area.x0 <= box.x0 and area.y0 <= box.y0 and box.y1 <= area.y1 for box in boxes)


def test_value_vs_cost_without_costs_is_a_text() -> None:
    trials = table(("complete", 0.5), parameters=[np.nan])
    assert "logged its model size" in title(search.value_vs_cost(trials, **ACCURACY))


# All of them


@pytest.mark.parametrize(("number", "every_kind"), [(1, False), (12, True), (300, False), (300, True)])
def test_figures_of_a_study_of_any_size_take_a_second_each_and_cut_nothing_off(number: int, every_kind: bool) -> None:
    trials, curves = make_study(number, every_kind=every_kind)
    began = time.process_time()
    figures = draw_figures(trials, curves, **ACCURACY)
    importances = {name: 1 / (index + 1) for index, name in enumerate(trials.filter(like="params.").columns)}
    figures["importances"] = search.parameter_importances(importances, metric="val_accuracy")
    for name, figure in figures.items():
        assert min(margins(figure)) > 5, name
    assert time.process_time() - began < len(figures)


def test_figures_of_losses_equal_values_and_long_names_raise_no_warning() -> None:
    trials, curves = make_study(40)
    long = trials.rename(columns={"params.depth": "params." + "depth_of_the_whole_" * 6})
    trials["value"] *= 1e5 ** np.linspace(0, 1, 40)
    trials.loc[0, "value"] = np.inf
    equal = trials.assign(value=0.5, parameters=602_890)
    for table_, metric in ((trials, "val_loss"), (equal, "val_loss"), (trials, "a_very_long_metric_" * 9)):
        for name, figure in draw_figures(table_, curves, metric=metric, direction="minimize").items():
            assert min(margins(figure)) > 5, name
    for figure in (
        search.parallel_coordinates(long, log=[], **ACCURACY),
        search.slices(long, log=[], **ACCURACY),
        search.heat_map(long, log=[], rows=long.columns[5][7:], columns="kernel_size", **ACCURACY),
        search.parameter_importances({long.columns[5]: 1.0}, metric="val_accuracy"),
    ):
        assert min(margins(figure)) > 5


@pytest.mark.parametrize("number", [0, 5])
def test_figures_without_a_finished_trial_are_a_text(number: int) -> None:
    trials = make_study(5)[0].assign(state="failed", value=np.nan)[:number]
    for figure in draw_figures(trials, {}, **ACCURACY).values():
        assert "No trial has finished" in title(figure)
        assert ("5 failed" in title(figure)) == (number == 5)


def test_figures_name_the_best_trial_and_count_the_states() -> None:
    trials, curves = make_study(60)
    leader = finished(trials).sort_values("value").iloc[-1]
    for name, figure in draw_figures(trials, curves, **ACCURACY).items():
        assert f"trial {leader['number']}, val_accuracy {100 * leader['value']:.1f} %" in title(figure), name
        assert f"{(trials['state'] == 'pruned').sum()} pruned" in title(figure), name
        colours = [line.get_color() for axes in figure.axes for line in axes.lines]
        edges = [patch.get_edgecolor() for axes in figure.axes for patch in axes.patches]
        assert any(same_color(colour, VERMILLION) for colour in colours + edges), name


def test_importing_the_figures_imports_no_pyplot_optuna_or_tensorflow() -> None:
    program = """
import sys
from pipeline.evaluation.figures import search
print({"matplotlib.pyplot", "optuna", "tensorflow", "mlflow"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
