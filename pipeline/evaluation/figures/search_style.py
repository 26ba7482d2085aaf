"""What the figures of a search share: their title, marks and colours of trials, axes of the metric.

The figures take a table of trials, which is described in `pipeline.evaluation.ranking`, and return a matplotlib Figure.
A colour and a mark have one meaning in all of them: an orange star is the winner of the finals, or the best trial where
there are none; blue dots are finished trials, grey marks unfinished ones; green is the Pareto front, black the best
value so far.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from pipeline.config.monitor import Direction
from pipeline.evaluation.figures.style import (
    BLUE,
    DPI,
    GREEN,
    GREY,
    VERMILLION,
    Figure,
    axes_at,
    default_style,
    draw_title,
    ellipsize,
    strip_frame,
    text_figure,
    text_width,
    titled,
)
from pipeline.evaluation.figures.value_scale import ValueScale, accuracy_label, value_scale
from pipeline.evaluation.ranking import best, finished
from pipeline.runtime.text import count, format_metric, is_share, trial_name

# without the palest blues, which would not show on white
DARKER_IS_BETTER = ListedColormap(colormaps["Blues"](np.linspace(0.25, 1, 256)))
MARKS: dict[str, dict[str, Any]] = {  # of trials that are not complete, by state
    "pruned": {"marker": "x", "color": GREY, "alpha": 0.7},
    "duplicate": {"marker": "D", "markersize": 5, "color": BLUE, "markerfacecolor": "none"},
    "failed": {"marker": "X", "color": "black", "markeredgewidth": 0},
    "infeasible": {"marker": "s", "markersize": 5, "color": GREY, "markerfacecolor": "none"},
}
LEADER, FRONT, BEST_SO_FAR = VERMILLION, GREEN, "black"
STAR: dict[str, Any] = {  # on the leader
    "marker": "*",
    "markersize": 14,
    "color": LEADER,
    "markeredgecolor": "white",
    "markeredgewidth": 0.7,
    "linestyle": "none",
}


class Winner(NamedTuple):
    """The trial whose configuration has won the finals."""

    number: int
    result: str  # of the finals, in words


class Leader(NamedTuple):
    """The trial that every figure marks."""

    number: int
    name: str  # `winner t017`, `best t016`
    result: str  # in words


def find_leader(
    trials: pd.DataFrame, *, metric: str, direction: Direction, winner: Winner | None = None
) -> Leader | None:
    """Return the winner or, without one among the finished trials, the trial with the best value; None if none has."""
    done = finished(trials).set_index("number")["value"]
    if winner and winner.number in done.index:
        return Leader(winner.number, f"winner {trial_name(winner.number, {})}", winner.result)
    if (number := best(trials, direction=direction)) is None:
        return None
    return Leader(number, f"best {trial_name(number, {})}", f"{metric} {format_metric(metric, float(done[number]))}")


@default_style()
def none_finished(trials: pd.DataFrame, title: str) -> Figure:
    """Return the figure in place of another one until a trial has finished: it says so and counts the trials."""
    needs = "needs 1 finished trial, there are none"
    return text_figure(f"{needs}\n{tally(trials)}" if len(trials) else needs, title=title)


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
    width: float, height: float, title: str, subject: str, trials: pd.DataFrame, leader: Leader | None, note: str = ""
) -> Figure:
    """Return an empty figure under its title; below that stand the leader and the number of trials by state.

    Args:
        width: In inches; at least 6.4.
        height: In inches.
        title: What the figure shows.
        subject: Of which data, split and search.
        trials: The table of trials.
        leader: The trial that is marked; None if none has finished.
        note: A further note.
    """
    figure = Figure(figsize=(max(width, 6.4), height), dpi=DPI)
    summary = f"★ {leader.name}: {leader.result}" if leader else "no trial has finished"
    draw_title(figure, titled(title, subject), summary, f"{count(len(trials), 'trial')}: {tally(trials)}", note)
    return figure


def tick_label(value: float, metric: str) -> str:
    """Return the label of a tick: an accuracy as `80 %`, with no more digits than it needs."""
    return accuracy_label(value) if is_share(metric) else f"{value:.4g}"


def value_ticks(axis: Axis, metric: str) -> None:
    """Label the ticks of an accuracy in per cent; those of other metrics are left to matplotlib."""
    if is_share(metric):
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


def scale_of(values: NDArray, metric: str, direction: Direction) -> ValueScale:
    """Return the scale on which the good ones among the values of a metric can be told apart."""
    return value_scale(values, is_accuracy=is_share(metric), falls=direction == "minimize")


def value_axis(axes: Axes, values: NDArray, metric: str, direction: Direction, inches: float) -> None:
    """Give a y axis of `inches` the scale that the values need, and label it with the metric."""
    scale = scale_of(values, metric, direction)
    scale.apply(axes, values)
    metric_axis(axes, metric, inches, scale.note)


def metric_axis(axes: Axes, metric: str, inches: float, note: str = "") -> None:
    """Label a y axis of `inches` with the metric's name."""
    name = ellipsize(metric, inches, 10)
    separator = "" if text_width(name + note, 10) <= inches else "\n"
    axes.set_ylabel(f"{name}{separator}{note}", parse_math=False)
    strip_frame(axes)
