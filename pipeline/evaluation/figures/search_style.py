"""What the figures of a search share: their title, marks and colours of trials, axes of the metric.

The figures take a table of trials, which is described in `pipeline.evaluation.ranking`, and return a matplotlib Figure;
`log` names the settings that were searched on a logarithmic scale. In every figure orange is the best trial, blue are
finished trials and grey unfinished ones.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from pipeline.evaluation.figures.style import (
    BLUE,
    DPI,
    GREY,
    VERMILLION,
    Figure,
    axes_at,
    default_style,
    draw_title,
    ellipsize,
    spans_decades,
    strip_frame,
    text_figure,
)
from pipeline.evaluation.ranking import Direction
from pipeline.runtime.text import count, percent

# without the palest blues, which would not show on white
DARKER_IS_BETTER = ListedColormap(colormaps["Blues"](np.linspace(0.25, 1, 256)))
MARKS: dict[str, dict[str, Any]] = {  # of trials that are not complete, by state
    "pruned": {"marker": "x", "color": GREY, "alpha": 0.7},
    "duplicate": {"marker": "D", "markersize": 5, "color": BLUE, "markerfacecolor": "none"},
    "failed": {"marker": "X", "color": "black", "markeredgewidth": 0},
    "infeasible": {"marker": "s", "markersize": 5, "color": GREY, "markerfacecolor": "none"},
}
RING: dict[str, Any] = {  # around the best trial
    "marker": "o",
    "markersize": 11,
    "color": VERMILLION,
    "markerfacecolor": "none",
    "markeredgewidth": 1.8,
}


@default_style()
def none_finished(trials: pd.DataFrame) -> Figure:
    """Return the figure in place of any other until a trial has finished: it counts the trials by state."""
    return text_figure(f"No trial has finished\n{tally(trials)}" if len(trials) else "No trial has finished")


def states_of(trials: pd.DataFrame) -> list[str]:
    """Return the states that occur, in the order in which they are named and drawn."""
    order = ["complete", *MARKS]
    occurring = set(trials["state"])
    return [state for state in order if state in occurring] + sorted(occurring - set(order))


def tally(trials: pd.DataFrame) -> str:
    """Return the number of trials in each state, in words."""
    return ", ".join(f"{(trials['state'] == state).sum():,} {state}" for state in states_of(trials))


@default_style()
def new_figure(
    width: float, height: float, title: str, trials: pd.DataFrame, metric: str, leader: int | None, note: str = ""
) -> Figure:
    """Return an empty figure under its title, which counts the trials by state and names the best one.

    Args:
        width: In inches; at least 6.4.
        height: In inches.
        title: What the figure shows.
        trials: The table of trials.
        metric: Name of the value.
        leader: Number of the best trial; None if none has finished.
        note: A further line of the title.
    """
    figure = Figure(figsize=(max(width, 6.4), height), dpi=DPI)
    summary = "no trial has finished"
    if leader is not None:
        value = float(trials.loc[trials["number"] == leader, "value"].iloc[0])
        summary = f"best (orange): trial {leader}, {ellipsize(metric, 2.5, 11)} {format_metric(value, metric)}"
    draw_title(figure, f"{title}: {count(len(trials), 'trial')}", tally(trials), summary, note)
    return figure


def format_metric(value: float, metric: str) -> str:
    """Return a value as text: an accuracy as `81.3 %`, anything else with four digits."""
    return percent(value) if "accuracy" in metric else f"{value:.4g}"


def tick_label(value: float, metric: str) -> str:
    """Return the label of a tick: an accuracy as `80 %`, with no more digits than it needs."""
    return f"{100 * value:.4g} %" if "accuracy" in metric else f"{value:.4g}"


def value_ticks(axis: Axis, metric: str) -> None:
    """Label the ticks of an accuracy in per cent; those of other metrics are left to matplotlib."""
    if "accuracy" in metric:
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(value, metric)))


def value_colors(direction: Direction) -> Colormap:
    """Return the colour map of values, in which darker is better."""
    return DARKER_IS_BETTER if direction == "maximize" else DARKER_IS_BETTER.reversed()


def color_range(values: NDArray, direction: Direction) -> Normalize:
    """Return the range of values that colours tell apart.

    Of ten or more values the worst tenth is left out, so that trials that learnt nothing do not use up the colours.
    """
    share = 0.1 if len(values) >= 10 else 0
    low, high = (share, 1) if direction == "maximize" else (0, 1 - share)
    return Normalize(np.quantile(values, low), np.quantile(values, high), clip=True)


def color_key(figure: Figure, axes: Axes, norm: Normalize, direction: Direction, metric: str, *, right: float) -> None:
    """Draw the key of the colours, `right` inches right of the axes; nothing if there is one value only."""
    if norm.vmin == norm.vmax:
        return
    width, height = figure.get_size_inches()
    place = axes.get_position()
    key = axes_at(figure, place.x1 * width + right, place.y0 * height, 0.15, place.height * height)
    bar = figure.colorbar(ScalarMappable(norm, value_colors(direction)), cax=key)
    bar.set_label(ellipsize(metric, max(place.height * height, 1.5), 10))
    value_ticks(key.yaxis, metric)


def value_axis(axes: Axes, values: NDArray, metric: str, direction: Direction, inches: float) -> None:
    """Label a y axis of `inches` with the metric, on a log scale if its finite values need that."""
    if needs_log_scale(values[np.isfinite(values)], direction):
        axes.set_yscale("log")
    metric_axis(axes, metric, inches)


def metric_axis(axes: Axes, metric: str, inches: float) -> None:
    """Label a y axis of `inches` with the metric's name and ticks."""
    value_ticks(axes.yaxis, metric)
    axes.set_ylabel(ellipsize(metric, inches, 10), parse_math=False)
    strip_frame(axes)


def needs_log_scale(values: NDArray, direction: Direction) -> bool:
    """Return whether a linear scale would flatten the good values: a loss may, an accuracy near chance does not."""
    return direction == "minimize" and spans_decades(values)
