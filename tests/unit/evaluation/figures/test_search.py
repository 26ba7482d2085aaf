"""What the pictures of a search space show."""

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

from pipeline.evaluation.figures import search
from pipeline.evaluation.figures.style import VERMILLION
from pipeline.evaluation.ranking import finished, pareto_front
from tests.support.figures import drawn, ink, title
from tests.support.studies import make_study, table

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
    axes = search.parallel_coordinates(SIX, **asked).axes[0]
    (thick,) = (line for line in axes.lines if line.get_linewidth() == 2.5)
    assert thick.get_ydata()[-1] == 1
    written = {text.get_text().removesuffix(" %"): text.xy[1] for text in axes.texts if hasattr(text, "xy")}
    assert written[f"{100 * best:g}" if asked is ASKED else f"{best:g}"] == pytest.approx(1)


def test_only_finished_trials_have_a_line_and_the_better_are_drawn_later() -> None:
    trials, _ = make_study(100)
    axes = search.parallel_coordinates(trials, **ASKED).axes[0]
    (others,) = (group for group in axes.collections if isinstance(group, LineCollection))
    ends = [segment[-1, 1] for segment in others.get_segments()]
    assert len(ends) == (trials["state"] == "complete").sum() - 1
    assert ends == sorted(ends)


def test_some_trials_that_learnt_nothing_leave_the_others_their_colours() -> None:
    good = [("complete", value) for value in np.linspace(0.7, 0.8, 20)]
    trials = table(("complete", 0.1), *good, params_depth=list(range(21)))
    bar = search.parallel_coordinates(trials, **ASKED).axes[1]
    assert bar.get_ylim() == pytest.approx((0.7, 0.8), abs=0.01)


# Slices


def test_each_setting_has_a_panel_with_the_finished_as_dots_and_the_pruned_as_crosses() -> None:
    figure = search.slices(SIX, **ASKED)
    kernel, patch = figure.axes[:2]
    assert [kernel.get_xlabel(), patch.get_xlabel()] == ["kernel_size", "patch_size"]
    dots = np.asarray(kernel.collections[0].get_offsets())
    assert dots[:, 1].tolist() == [0.5, 0.7, 0.6]
    assert dots[:, 0] == pytest.approx([0.25, 0.25, 0.75], abs=0.1)  # 3, 3, 5 and a little apart
    assert list(kernel.lines[0].get_ydata()) == [0.9]


def test_later_trials_are_darker() -> None:
    trials, _ = make_study(50)
    figure = search.slices(trials, **ASKED)
    drawn(figure)
    brightness = figure.axes[0].collections[0].get_facecolors()[:, :3].sum(axis=1)  # type: ignore[attr-defined]
    assert (np.diff(brightness) <= 0).all() and np.ptp(brightness) > 1


def test_tick_labels_do_not_touch() -> None:
    trials, _ = make_study(300, every_kind=True)
    figure = search.slices(trials, **ASKED | {"log": ["learning_rate", "weight_decay"]})
    drawn(figure)
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes)), axes.get_xlabel()


# Heat map


def grid(asked: dict[str, Any]) -> tuple[np.ndarray, dict[tuple[int, int], str]]:
    axes = search.heat_map(SIX, rows="kernel_size", columns="patch_size", **asked).axes[0]
    words = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
    return np.ma.filled(np.ma.masked_invalid(axes.images[0].get_array()), np.nan), words  # type: ignore[arg-type]


def test_a_cell_has_the_best_finished_value_and_counts_the_finished_and_the_tried_but_no_duplicates() -> None:
    values, words = grid(ASKED)
    assert values == pytest.approx(np.array([[0.7, np.nan], [np.nan, 0.6]]), nan_ok=True)
    assert words == {(0, 0): "70.0 %\n2 of 3", (1, 0): "0 of 1", (1, 1): "60.0 %\n1 of 1"}
    assert grid(LOSS)[0][0, 0] == 0.5


def test_a_cell_in_which_nothing_finished_is_hatched_unlike_the_worst_value() -> None:
    figure = search.heat_map(SIX, rows="kernel_size", columns="patch_size", **ASKED)
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
    axes = search.heat_map(trials, **asked | {"log": ["learning_rate"]}).axes[0]
    assert [text.get_text().split("\n")[1] for text in axes.texts] == ["2 of 2"] * 7 + ["3 of 3"]
    ticks = dict(zip([label.get_text() for label in axes.get_xticklabels()], axes.get_xticks(), strict=True))
    assert ticks["0.001"] == pytest.approx(3.5)  # the edge between the fourth cell and the fifth


@pytest.mark.parametrize(("rows", "columns"), [("dept", "kernel_size"), ("kernel_size", "kernel_size")])
def test_anything_but_two_searched_settings_is_refused_with_those_there_are(rows: str, columns: str) -> None:
    with pytest.raises(ValueError, match=f"settings of kernel_size, patch_size: got '{rows}' and '{columns}'"):
        search.heat_map(SIX, rows=rows, columns=columns, **ASKED)


ASKED_PLAIN: dict[str, Any] = {"metric": "val_accuracy", "direction": "maximize"}


def pictures(trials: pd.DataFrame, curves: dict[int, list[float]], **asked: Any) -> dict[str, Figure]:
    """Every picture of a study."""
    log = ["learning_rate", "weight_decay"]
    return {
        "history": search.optimization_history(trials, **asked),
        "curves": search.intermediate_curves(curves, trials, **asked),
        "front": search.value_vs_cost(trials, **asked),
        "parallel": search.parallel_coordinates(trials, log=log, **asked),
        "slices": search.slices(trials, log=log, **asked),
        "grid": search.heat_map(trials, rows="kernel_size", columns="patch_size", log=log, **asked),
        "ranges": search.heat_map(trials, rows="depth", columns="learning_rate", log=log, **asked),
    }


def points(axes: Axes, label: str) -> list[list[float]]:
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return np.asarray(line.get_xydata()).tolist()


# History


def test_the_best_so_far_rises_with_finished_trials_only_and_reaches_the_last_trial() -> None:
    trials = table(
        ("failed", np.nan), ("complete", 0.5), ("pruned", 0.9), ("complete", 0.7), ("complete", 0.6), ("pruned", 0.2)
    )
    axes = search.optimization_history(trials, **ASKED_PLAIN).axes[0]
    assert points(axes, "best so far") == [[1, 0.5], [3, 0.7], [4, 0.7], [5, 0.7]]
    assert points(axes, "complete") == [[1, 0.5], [3, 0.7], [4, 0.6]]
    assert points(axes, "pruned") == [[2, 0.9], [5, 0.2]]


def test_what_is_best_so_far_falls_where_less_is_better() -> None:
    trials = table(("complete", 0.5), ("complete", 0.7), ("complete", 0.4))
    axes = search.optimization_history(trials, metric="val_loss", direction="minimize").axes[0]
    assert points(axes, "best so far")[:3] == [[0, 0.5], [1, 0.5], [2, 0.4]]


def test_trials_without_a_value_stand_below_in_a_row_for_each_state() -> None:
    trials = table(
        ("complete", 0.5), ("failed", np.nan), ("infeasible", np.nan), ("pruned", np.nan), ("failed", np.nan)
    )
    below = search.optimization_history(trials, **ASKED_PLAIN).axes[1]
    names = [label.get_text() for label in below.get_yticklabels()]
    rows = {names[int(line.get_ydata()[0])]: list(line.get_xdata()) for line in below.lines}
    assert rows == {"pruned": [3], "failed": [1, 4], "infeasible": [2]}
    assert len(search.optimization_history(trials[:1], **ASKED_PLAIN).axes) == 1


def test_an_unknown_state_is_drawn_rather_than_refused_at_the_end_of_a_night() -> None:
    axes = search.optimization_history(table(("complete", 0.5), ("running", 0.4)), **ASKED_PLAIN).axes[0]
    assert points(axes, "running") == [[1, 0.4]]


# Curves


def test_a_curve_that_did_not_finish_is_fainter_and_marked_at_its_last_finite_value() -> None:
    trials = table(("complete", 0.5), ("pruned", 0.3), ("failed", np.nan), ("complete", 0.6))
    curves = {0: [0.1, 0.5], 1: [0.2, 0.3], 2: [0.15, np.nan], 3: [0.3, 0.6], 99: [0.9, 0.9]}
    axes = search.intermediate_curves(curves, trials, **ASKED_PLAIN).axes[0]
    assert points(axes, "pruned (where it ended)") == [[2, 0.3]]
    assert points(axes, "failed (where it ended)") == [[1, 0.15]]
    assert points(axes, "best: trial 3") == [[1, 0.3], [2, 0.6]]
    finished_lines, pruned_lines, _ = (group for group in axes.collections if isinstance(group, LineCollection))
    assert finished_lines.get_segments()[0].tolist() == [[1, 0.1], [2, 0.5]]
    assert pruned_lines.get_alpha() < finished_lines.get_alpha()  # type: ignore[operator]


def test_curves_are_drawn_although_no_trial_has_finished() -> None:
    figure = search.intermediate_curves({0: [0.1, 0.2]}, table(("pruned", 0.2)), **ASKED_PLAIN)
    assert points(figure.axes[0], "pruned (where it ended)") == [[2, 0.2]]
    assert "no trial has finished" in title(figure)


# Importances


def test_what_mattered_most_is_on_top_with_its_share_beside_it() -> None:
    axes = search.parameter_importances({"depth": 0.25, "patch_size": 0.75}, metric="val_accuracy").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["patch_size", "depth"]
    assert axes.yaxis_inverted()
    assert [text.get_text() for text in axes.texts] == ["75.0 %", "25.0 %"]


def test_no_importances_are_said_in_words() -> None:
    assert "Not enough trials" in title(search.parameter_importances({}, metric="val_accuracy"))
    drawn(search.parameter_importances({"depth": np.nan}, metric="val_accuracy"))


# Pareto front


def test_the_front_is_drawn_and_its_members_are_named_by_the_settings_that_differ() -> None:
    trials = table(
        *[("complete", value) for value in (0.5, 0.7, 0.6, 0.8)],
        params_kernel_size=[3, 5, 7, 9],
        params_patch_size=[2, 2, 2, 2],
        params_depth=[4, 8, 8, 12],
        parameters=[100_000, 300_000, 400_000, 1_000_000],
    )
    axes = search.value_vs_cost(trials, **ASKED_PLAIN).axes[0]
    assert axes.get_xscale() == "log"
    assert points(axes, "Pareto front") == [
        [pytest.approx(size), value] for size, value in ((1e5, 0.5), (3e5, 0.7), (1e6, 0.8))
    ]
    assert [text.get_text() for text in axes.texts] == ["k3 d4", "k5 d8", "k9 d12"]


def test_members_with_many_settings_are_named_by_their_trial() -> None:
    trials, _ = make_study(12, every_kind=True)
    front = pareto_front(trials, direction="maximize", cost="parameters")
    axes = search.value_vs_cost(trials, **ASKED_PLAIN).axes[0]
    assert [text.get_text() for text in axes.texts] == [f"t{number:03d}" for number in front]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("crowded", [False, True])
def test_names_along_the_front_cover_neither_each_other_nor_a_trial(direction: str, crowded: bool) -> None:
    trials, _ = make_study(300)
    if crowded:  # forty members in a corner
        trials.loc[:39, "state"] = "complete"
        trials.loc[:39, "value"] = np.linspace(0.90, 0.91, 40)
        trials.loc[:39, "parameters"] = np.arange(250_000, 250_040)
    if direction == "minimize":
        trials["value"] = 1 - trials["value"]
    figure = search.value_vs_cost(trials, metric="x", direction=direction)  # type: ignore[arg-type]
    drawn(figure)
    axes = figure.axes[0]
    boxes = [text.get_window_extent().padded(-1) for text in axes.texts]
    assert len(boxes) == len(pareto_front(trials, direction=direction, cost="parameters"))  # type: ignore[arg-type]
    assert not any(box.overlaps(other) for index, box in enumerate(boxes) for other in boxes[:index])
    done = finished(trials)
    dots = axes.transData.transform(done[["parameters", "value"]].to_numpy(float))
    assert not any(box.contains(x, y) for box in boxes for x, y in dots)
    area = axes.get_window_extent()
    assert all(area.x0 <= box.x0 and area.y0 <= box.y0 and box.y1 <= area.y1 for box in boxes)


def test_a_study_that_never_counted_parameters_is_told_so() -> None:
    trials = table(("complete", 0.5), parameters=[np.nan])
    assert "said its model size" in title(search.value_vs_cost(trials, **ASKED_PLAIN))


# All of them


@pytest.mark.parametrize(("number", "every_kind"), [(1, False), (12, True), (300, False), (300, True)])
def test_a_study_of_any_size_is_drawn_in_a_second_a_picture_with_nothing_cut_off(number: int, every_kind: bool) -> None:
    trials, curves = make_study(number, every_kind=every_kind)
    began = time.process_time()
    figures = pictures(trials, curves, **ASKED_PLAIN)
    importances = {name: 1 / (index + 1) for index, name in enumerate(trials.filter(like="params.").columns)}
    figures["importances"] = search.parameter_importances(importances, metric="val_accuracy")
    for name, figure in figures.items():
        assert min(ink(figure)) > 5, name
    assert time.process_time() - began < len(figures)


def test_losses_equal_values_and_long_names_are_drawn_without_a_warning() -> None:  # pytest makes warnings errors
    trials, curves = make_study(40)
    long = trials.rename(columns={"params.depth": "params." + "depth_of_the_whole_" * 6})
    trials["value"] *= 1e5 ** np.linspace(0, 1, 40)
    trials.loc[0, "value"] = np.inf
    equal = trials.assign(value=0.5, parameters=602_890)
    for table_, metric in ((trials, "val_loss"), (equal, "val_loss"), (trials, "a_very_long_metric_" * 9)):
        for name, figure in pictures(table_, curves, metric=metric, direction="minimize").items():
            assert min(ink(figure)) > 5, name
    for figure in (
        search.parallel_coordinates(long, log=[], **ASKED_PLAIN),
        search.slices(long, log=[], **ASKED_PLAIN),
        search.heat_map(long, log=[], rows=long.columns[5][7:], columns="kernel_size", **ASKED_PLAIN),
        search.parameter_importances({long.columns[5]: 1.0}, metric="val_accuracy"),
    ):
        assert min(ink(figure)) > 5


@pytest.mark.parametrize("number", [0, 5])
def test_a_study_in_which_no_trial_has_finished_says_so_in_every_picture(number: int) -> None:
    trials = make_study(5)[0].assign(state="failed", value=np.nan)[:number]
    for figure in pictures(trials, {}, **ASKED_PLAIN).values():
        assert "No trial has finished" in title(figure)
        assert ("5 failed" in title(figure)) == (number == 5)


def test_every_picture_names_the_best_trial_and_counts_the_states() -> None:
    trials, curves = make_study(60)
    leader = finished(trials).sort_values("value").iloc[-1]
    for name, figure in pictures(trials, curves, **ASKED_PLAIN).items():
        assert f"trial {leader['number']}, val_accuracy {100 * leader['value']:.1f} %" in title(figure), name
        assert f"{(trials['state'] == 'pruned').sum()} pruned" in title(figure), name
        colours = [line.get_color() for axes in figure.axes for line in axes.lines]
        edges = [patch.get_edgecolor() for axes in figure.axes for patch in axes.patches]
        assert any(same_color(colour, VERMILLION) for colour in colours + edges), name


def test_drawing_leaves_pyplot_optuna_and_tensorflow_alone() -> None:
    program = """
import sys
from pipeline.evaluation.figures import search
print({"matplotlib.pyplot", "optuna", "tensorflow", "mlflow"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
