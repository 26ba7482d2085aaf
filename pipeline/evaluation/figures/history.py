"""Figures of a search over time: the value of each trial by number, and its metric over the epochs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.config.monitor import Direction
from pipeline.evaluation.figures.search_style import (
    BEST_SO_FAR,
    MARKS,
    STAR,
    Winner,
    find_leader,
    new_figure,
    none_finished,
    states_of,
    value_axis,
)
from pipeline.evaluation.figures.style import (
    BLUE,
    GREY,
    Figure,
    axes_at,
    default_style,
    finite_or_nan,
    text_figure,
    titled,
)
from pipeline.evaluation.ranking import finished, sign


@default_style()
def optimization_history(
    trials: pd.DataFrame, *, metric: str, direction: Direction, subject: str = "", winner: Winner | None = None
) -> Figure:
    """Draw the value of each trial by number, and the best value so far as a line.

    Trials without a value are marked below the axes, in a row for each state.
    """
    title = "Optimization history"
    if (leader := find_leader(trials, metric=metric, direction=direction, winner=winner)) is None:
        return none_finished(trials, titled(title, subject))
    values = finite_or_nan(trials["value"].to_numpy(float))
    without_value = [state for state in states_of(trials) if np.isnan(values[trials["state"] == state]).any()]
    strip = 0.1 + 0.2 * len(without_value) if without_value else 0  # inches
    figure = new_figure(8.6, 4.95 + strip, title, subject, trials, leader)
    axes = axes_at(figure, 0.95, 0.55 + strip, 7.35, 3.3)
    below = axes_at(figure, 0.95, 0.55, 7.35, strip) if without_value else axes

    largest = 4 if len(trials) > 60 else 6  # points
    for state in states_of(trials):
        of_state = (trials["state"] == state).to_numpy()
        mark = MARKS.get(state, {"marker": "o", "color": BLUE})
        style: dict[str, Any] = {"linestyle": "none", "markersize": largest} | mark
        style["markersize"] = min(style["markersize"], largest)
        has_value = of_state & np.isfinite(values)
        if has_value.any():
            axes.plot(trials["number"][has_value], values[has_value], **style, label=state)
        if state in without_value:
            numbers = trials["number"][of_state & np.isnan(values)]
            below.plot(numbers, np.full(len(numbers), without_value.index(state)), **style)
    done = finished(trials)
    so_far = sign(direction) * np.maximum.accumulate(sign(direction) * done["value"].to_numpy(float))
    last = trials["number"].max()
    path: dict[str, Any] = {"where": "post", "color": BEST_SO_FAR, "linewidth": 1, "label": "best so far"}
    axes.step([*done["number"], last], [*so_far, so_far[-1]], **path, zorder=1)
    axes.plot(leader.number, values[trials["number"] == leader.number], **STAR, zorder=4, label=leader.name)
    value_axis(axes, values, metric, direction, 3.3)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=6, frameon=False, borderaxespad=0, handletextpad=0.4)
    if without_value:
        axes.tick_params(labelbottom=False, bottom=False)
        below.set_yticks(range(len(without_value)), without_value, fontsize=8)
        below.set_ylim(len(without_value) - 0.4, -0.6)
        below.tick_params(left=False)
        below.spines[["top", "right", "left"]].set_visible(False)
    margin = max(0.5, 0.02 * last)
    for panel in (axes, below):
        panel.set_xlim(trials["number"].min() - margin, last + margin)
    below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    below.set_xlabel("trial")
    return figure


@default_style()
def intermediate_curves(
    curves: Mapping[int, Sequence[float]],
    trials: pd.DataFrame,
    *,
    metric: str,
    direction: Direction,
    subject: str = "",
    winner: Winner | None = None,
    unit: str = "epoch",
) -> Figure:
    """Draw the metric of every trial over the epochs: the best thick, unfinished ones faint with a mark at their end.

    The figure does not need a finished trial, as long as one trial has completed an epoch.

    Args:
        curves: One value an epoch by trial number, from epoch 1 on; values that are not finite leave a gap.
        trials: The table of trials.
        metric: Name of the metric.
        direction: Whether it is maximized or minimized.
        subject: Of which data, split and search, for the title.
        winner: The trial to mark instead of the best one.
        unit: After what there is a value: each epoch, or each fold, of which it is then the mean so far.
    """
    states = dict(zip(trials["number"], trials["state"], strict=True))
    lines = {number: finite_or_nan(curves[number]) for number in sorted(curves) if number in states}
    lines = {number: values for number, values in lines.items() if np.isfinite(values).any()}
    title = f"Values over the {unit}s"
    if not lines:
        text = f"needs 1 trial that has completed {'an' if unit == 'epoch' else 'a'} {unit}, there are none"
        return text_figure(text, title=titled(title, subject))
    leader = find_leader(trials, metric=metric, direction=direction, winner=winner)
    figure = new_figure(8.6, 5.2, title, subject, trials, leader)
    axes = axes_at(figure, 0.95, 0.6, 7.35, 3.6)
    for state in dict.fromkeys(["complete", *states_of(trials)]):
        of_state = [
            values
            for number, values in lines.items()
            if states[number] == state and number != (leader and leader.number)
        ]
        if of_state:
            _draw_curves(axes, of_state, state, opacity=min(1.0, max(0.25, 15 / len(lines))))
    if leader and leader.number in lines:
        values = lines[leader.number]
        end = int(np.flatnonzero(np.isfinite(values))[-1])
        line: dict[str, Any] = STAR | {"linestyle": "-", "linewidth": 2.2, "markevery": [end], "clip_on": False}
        axes.plot(range(1, len(values) + 1), values, **line, zorder=4, label=leader.name)
    xlabel = "epoch" if unit == "epoch" else f"{unit}s (mean of those so far)"
    axes.set(xlabel=xlabel, xlim=(0.5, max(map(len, lines.values())) + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    value_axis(axes, np.concatenate(list(lines.values())), metric, direction, 3.6)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=6, frameon=False, borderaxespad=0, fontsize=9)
    return figure


def _draw_curves(axes: Axes, curves: Sequence[NDArray], state: str, *, opacity: float) -> None:
    """Draw the curves of the trials of one state, each with a mark at its last finite value."""
    complete = state == "complete"
    style: dict[str, Any] = {"marker": "o", "color": BLUE} if complete else MARKS.get(state, {"marker": "."})
    axes.add_collection(
        LineCollection(
            [np.column_stack([np.arange(1, len(values) + 1), values]) for values in curves],
            colors=BLUE if complete else GREY,
            linewidths=1,
            alpha=opacity if complete else 0.5 * opacity,
            zorder=2 if complete else 1,
        )
    )
    ends = [np.flatnonzero(np.isfinite(values))[-1] for values in curves]
    axes.plot(
        np.array(ends) + 1,
        [values[end] for values, end in zip(curves, ends, strict=True)],
        **{"linestyle": "none"} | style | {"markersize": 3 if complete else 5, "alpha": max(opacity, 0.5)},
        zorder=2 if complete else 3,
        label=state if complete else f"{state} (where it ended)",
    )
