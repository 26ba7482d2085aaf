"""What the pictures of a study show."""

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_study import made_study, table
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from pictures import drawn, ink, title

from pipeline.study import space_plots, study_plots
from pipeline.study.standings import finished, pareto_front
from pipeline.style import VERMILLION

ASKED: dict[str, Any] = {"metric": "val_accuracy", "direction": "maximize"}


def pictures(trials: pd.DataFrame, curves: dict[int, list[float]], **asked: Any) -> dict[str, Figure]:
    """Every picture of a study."""
    log = ["learning_rate", "weight_decay"]
    return {
        "history": study_plots.optimisation_history(trials, **asked),
        "curves": study_plots.intermediate_curves(curves, trials, **asked),
        "front": study_plots.value_against_cost(trials, **asked),
        "parallel": space_plots.parallel_coordinates(trials, log=log, **asked),
        "slices": space_plots.slices(trials, log=log, **asked),
        "grid": space_plots.heat_map(trials, rows="kernel_size", columns="patch_size", log=log, **asked),
        "ranges": space_plots.heat_map(trials, rows="depth", columns="learning_rate", log=log, **asked),
    }


def points(axes: Axes, label: str) -> list[list[float]]:
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return np.asarray(line.get_xydata()).tolist()


# History


def test_the_best_so_far_rises_with_finished_trials_only_and_reaches_the_last_trial() -> None:
    trials = table(
        ("failed", np.nan), ("complete", 0.5), ("pruned", 0.9), ("complete", 0.7), ("complete", 0.6), ("pruned", 0.2)
    )
    axes = study_plots.optimisation_history(trials, **ASKED).axes[0]
    assert points(axes, "best so far") == [[1, 0.5], [3, 0.7], [4, 0.7], [5, 0.7]]
    assert points(axes, "complete") == [[1, 0.5], [3, 0.7], [4, 0.6]]
    assert points(axes, "pruned") == [[2, 0.9], [5, 0.2]]


def test_what_is_best_so_far_falls_where_less_is_better() -> None:
    trials = table(("complete", 0.5), ("complete", 0.7), ("complete", 0.4))
    axes = study_plots.optimisation_history(trials, metric="val_loss", direction="minimize").axes[0]
    assert points(axes, "best so far")[:3] == [[0, 0.5], [1, 0.5], [2, 0.4]]


def test_trials_without_a_value_stand_below_in_a_row_for_each_state() -> None:
    trials = table(
        ("complete", 0.5), ("failed", np.nan), ("infeasible", np.nan), ("pruned", np.nan), ("failed", np.nan)
    )
    below = study_plots.optimisation_history(trials, **ASKED).axes[1]
    names = [label.get_text() for label in below.get_yticklabels()]
    rows = {names[int(line.get_ydata()[0])]: list(line.get_xdata()) for line in below.lines}
    assert rows == {"pruned": [3], "failed": [1, 4], "infeasible": [2]}
    assert len(study_plots.optimisation_history(trials[:1], **ASKED).axes) == 1


def test_an_unknown_state_is_drawn_rather_than_refused_at_the_end_of_a_night() -> None:
    axes = study_plots.optimisation_history(table(("complete", 0.5), ("running", 0.4)), **ASKED).axes[0]
    assert points(axes, "running") == [[1, 0.4]]


# Curves


def test_a_curve_that_did_not_finish_is_fainter_and_marked_at_its_last_finite_value() -> None:
    trials = table(("complete", 0.5), ("pruned", 0.3), ("failed", np.nan), ("complete", 0.6))
    curves = {0: [0.1, 0.5], 1: [0.2, 0.3], 2: [0.15, np.nan], 3: [0.3, 0.6], 99: [0.9, 0.9]}
    axes = study_plots.intermediate_curves(curves, trials, **ASKED).axes[0]
    assert points(axes, "pruned (where it ended)") == [[2, 0.3]]
    assert points(axes, "failed (where it ended)") == [[1, 0.15]]
    assert points(axes, "best: trial 3") == [[1, 0.3], [2, 0.6]]
    finished_lines, pruned_lines, _ = (group for group in axes.collections if isinstance(group, LineCollection))
    assert finished_lines.get_segments()[0].tolist() == [[1, 0.1], [2, 0.5]]
    assert pruned_lines.get_alpha() < finished_lines.get_alpha()  # type: ignore[operator]


def test_curves_are_drawn_although_no_trial_has_finished() -> None:
    figure = study_plots.intermediate_curves({0: [0.1, 0.2]}, table(("pruned", 0.2)), **ASKED)
    assert points(figure.axes[0], "pruned (where it ended)") == [[2, 0.2]]
    assert "no trial has finished" in title(figure)


# Importances


def test_what_mattered_most_is_on_top_with_its_share_beside_it() -> None:
    axes = study_plots.parameter_importances({"depth": 0.25, "patch_size": 0.75}, metric="val_accuracy").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["patch_size", "depth"]
    assert axes.yaxis_inverted()
    assert [text.get_text() for text in axes.texts] == ["75.0 %", "25.0 %"]


def test_no_importances_are_said_in_words() -> None:
    assert "Not enough trials" in title(study_plots.parameter_importances({}, metric="val_accuracy"))
    drawn(study_plots.parameter_importances({"depth": np.nan}, metric="val_accuracy"))


# Pareto front


def test_the_front_is_drawn_and_its_members_are_named_by_the_settings_that_differ() -> None:
    trials = table(
        *[("complete", value) for value in (0.5, 0.7, 0.6, 0.8)],
        params_kernel_size=[3, 5, 7, 9],
        params_patch_size=[2, 2, 2, 2],
        params_depth=[4, 8, 8, 12],
        parameters=[100_000, 300_000, 400_000, 1_000_000],
    )
    axes = study_plots.value_against_cost(trials, **ASKED).axes[0]
    assert axes.get_xscale() == "log"
    assert points(axes, "Pareto front") == [
        [pytest.approx(size), value] for size, value in ((1e5, 0.5), (3e5, 0.7), (1e6, 0.8))
    ]
    assert [text.get_text() for text in axes.texts] == ["k3 d4", "k5 d8", "k9 d12"]


def test_members_with_many_settings_are_named_by_their_trial() -> None:
    trials, _ = made_study(12, every_kind=True)
    front = pareto_front(trials, direction="maximize", cost="parameters")
    axes = study_plots.value_against_cost(trials, **ASKED).axes[0]
    assert [text.get_text() for text in axes.texts] == [f"t{number:03d}" for number in front]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("crowded", [False, True])
def test_names_along_the_front_cover_neither_each_other_nor_a_trial(direction: str, crowded: bool) -> None:
    trials, _ = made_study(300)
    if crowded:  # forty members in a corner
        trials.loc[:39, "state"] = "complete"
        trials.loc[:39, "value"] = np.linspace(0.90, 0.91, 40)
        trials.loc[:39, "parameters"] = np.arange(250_000, 250_040)
    if direction == "minimize":
        trials["value"] = 1 - trials["value"]
    figure = study_plots.value_against_cost(trials, metric="x", direction=direction)  # type: ignore[arg-type]
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
    assert "said its model size" in title(study_plots.value_against_cost(trials, **ASKED))


# All of them


@pytest.mark.parametrize(("number", "every_kind"), [(1, False), (12, True), (300, False), (300, True)])
def test_a_study_of_any_size_is_drawn_in_a_second_a_picture_with_nothing_cut_off(number: int, every_kind: bool) -> None:
    trials, curves = made_study(number, every_kind=every_kind)
    began = time.process_time()
    figures = pictures(trials, curves, **ASKED)
    importances = {name: 1 / (index + 1) for index, name in enumerate(trials.filter(like="params.").columns)}
    figures["importances"] = study_plots.parameter_importances(importances, metric="val_accuracy")
    for name, figure in figures.items():
        assert min(ink(figure)) > 5, name
    assert time.process_time() - began < len(figures)


def test_losses_equal_values_and_long_names_are_drawn_without_a_warning() -> None:  # pytest makes warnings errors
    trials, curves = made_study(40)
    long = trials.rename(columns={"params.depth": "params." + "depth_of_the_whole_" * 6})
    trials["value"] *= 1e5 ** np.linspace(0, 1, 40)
    trials.loc[0, "value"] = np.inf
    equal = trials.assign(value=0.5, parameters=602_890)
    for table_, metric in ((trials, "val_loss"), (equal, "val_loss"), (trials, "a_very_long_metric_" * 9)):
        for name, figure in pictures(table_, curves, metric=metric, direction="minimize").items():
            assert min(ink(figure)) > 5, name
    for figure in (
        space_plots.parallel_coordinates(long, log=[], **ASKED),
        space_plots.slices(long, log=[], **ASKED),
        space_plots.heat_map(long, log=[], rows=long.columns[5][7:], columns="kernel_size", **ASKED),
        study_plots.parameter_importances({long.columns[5]: 1.0}, metric="val_accuracy"),
    ):
        assert min(ink(figure)) > 5


@pytest.mark.parametrize("number", [0, 5])
def test_a_study_in_which_no_trial_has_finished_says_so_in_every_picture(number: int) -> None:
    trials = made_study(5)[0].assign(state="failed", value=np.nan)[:number]
    for figure in pictures(trials, {}, **ASKED).values():
        assert "No trial has finished" in title(figure)
        assert ("5 failed" in title(figure)) == (number == 5)


def test_every_picture_names_the_best_trial_and_counts_the_states() -> None:
    trials, curves = made_study(60)
    leader = finished(trials).sort_values("value").iloc[-1]
    for name, figure in pictures(trials, curves, **ASKED).items():
        assert f"trial {leader['number']}, val_accuracy {100 * leader['value']:.1f} %" in title(figure), name
        assert f"{(trials['state'] == 'pruned').sum()} pruned" in title(figure), name
        colours = [line.get_color() for axes in figure.axes for line in axes.lines]
        edges = [patch.get_edgecolor() for axes in figure.axes for patch in axes.patches]
        assert any(same_color(colour, VERMILLION) for colour in colours + edges), name


def test_drawing_leaves_pyplot_optuna_and_tensorflow_alone() -> None:
    program = """
import sys
from pipeline.study import space_plots, study_plots
print({"matplotlib.pyplot", "optuna", "tensorflow", "mlflow"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
