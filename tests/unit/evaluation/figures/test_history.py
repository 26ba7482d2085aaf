"""The figures of a search over time."""

import numpy as np
from matplotlib.collections import LineCollection

from pipeline.evaluation.figures.history import intermediate_curves, optimization_history
from tests.support.figures import points, title
from tests.support.studies import ACCURACY, table


def test_optimization_history_best_so_far_counts_finished_trials_up_to_the_last_one() -> None:
    trials = table(
        ("failed", np.nan), ("complete", 0.5), ("pruned", 0.9), ("complete", 0.7), ("complete", 0.6), ("pruned", 0.2)
    )
    axes = optimization_history(trials, **ACCURACY).axes[0]
    assert points(axes, "best so far") == [[1, 0.5], [3, 0.7], [4, 0.7], [5, 0.7]]
    assert points(axes, "complete") == [[1, 0.5], [3, 0.7], [4, 0.6]]
    assert points(axes, "pruned") == [[2, 0.9], [5, 0.2]]


def test_optimization_history_best_so_far_falls_if_minimized() -> None:
    trials = table(("complete", 0.5), ("complete", 0.7), ("complete", 0.4))
    axes = optimization_history(trials, metric="val_loss", direction="minimize").axes[0]
    assert points(axes, "best so far")[:3] == [[0, 0.5], [1, 0.5], [2, 0.4]]


def test_optimization_history_marks_trials_without_a_value_below_by_state() -> None:
    trials = table(
        ("complete", 0.5), ("failed", np.nan), ("infeasible", np.nan), ("pruned", np.nan), ("failed", np.nan)
    )
    below = optimization_history(trials, **ACCURACY).axes[1]
    names = [label.get_text() for label in below.get_yticklabels()]
    rows = {names[int(line.get_ydata()[0])]: list(line.get_xdata()) for line in below.lines}
    assert rows == {"pruned": [3], "failed": [1, 4], "infeasible": [2]}
    assert len(optimization_history(trials[:1], **ACCURACY).axes) == 1


def test_optimization_history_draws_an_unknown_state() -> None:
    axes = optimization_history(table(("complete", 0.5), ("running", 0.4)), **ACCURACY).axes[0]
    assert points(axes, "running") == [[1, 0.4]]


def test_intermediate_curves_mark_where_unfinished_trials_ended() -> None:
    trials = table(("complete", 0.5), ("pruned", 0.3), ("failed", np.nan), ("complete", 0.6))
    curves = {0: [0.1, 0.5], 1: [0.2, 0.3], 2: [0.15, np.nan], 3: [0.3, 0.6], 99: [0.9, 0.9]}
    axes = intermediate_curves(curves, trials, **ACCURACY).axes[0]
    assert points(axes, "pruned (where it ended)") == [[2, 0.3]]
    assert points(axes, "failed (where it ended)") == [[1, 0.15]]
    assert points(axes, "best t003") == [[1, 0.3], [2, 0.6]]
    finished_lines, pruned_lines, _ = (group for group in axes.collections if isinstance(group, LineCollection))
    assert finished_lines.get_segments()[0].tolist() == [[1, 0.1], [2, 0.5]]
    assert pruned_lines.get_alpha() < finished_lines.get_alpha()  # type: ignore[operator]


def test_intermediate_curves_need_no_finished_trial() -> None:
    figure = intermediate_curves({0: [0.1, 0.2]}, table(("pruned", 0.2)), **ACCURACY)
    assert points(figure.axes[0], "pruned (where it ended)") == [[2, 0.2]]
    assert "no trial has finished" in title(figure)
