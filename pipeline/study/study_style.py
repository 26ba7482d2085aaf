"""What the pictures of a study share: marks, colours, the heading, the metric's axis.

The table of trials is described in `pipeline.study.standings`. Orange is the best, blue has finished, grey has not.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from pipeline.study.standings import Direction
from pipeline.style import BLUE, DPI, QUIET, VERMILLION, axes_at, count, fitted, heading, percent, sentence

DARKER_IS_BETTER = ListedColormap(colormaps["Blues"](np.linspace(0.25, 1, 256)))  # its palest would not show on white
MARKS: dict[str, dict[str, Any]] = {  # how a trial that is not complete is drawn
    "pruned": {"marker": "x", "color": QUIET, "alpha": 0.7},
    "duplicate": {"marker": "D", "markersize": 5, "color": BLUE, "markerfacecolor": "none"},
    "failed": {"marker": "X", "color": "black", "markeredgewidth": 0},
    "infeasible": {"marker": "s", "markersize": 5, "color": QUIET, "markerfacecolor": "none"},
}
RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 11,
    "color": VERMILLION,
    "markerfacecolor": "none",
    "markeredgewidth": 1.8,
}


def none_finished(trials: pd.DataFrame) -> Figure:
    """What every picture is until a trial has finished: that, and what became of them."""
    return sentence(f"No trial has finished\n{_tally(trials)}" if len(trials) else "No trial has finished")


def states_of(trials: pd.DataFrame) -> list[str]:
    """The states that occur, in the order in which they are named and drawn."""
    order = ["complete", *MARKS]
    occurring = set(trials["state"])
    return [state for state in order if state in occurring] + sorted(occurring - set(order))


def _tally(trials: pd.DataFrame) -> str:
    return ", ".join(f"{(trials['state'] == state).sum():,} {state}" for state in states_of(trials))


def canvas(
    across: float, down: float, what: str, trials: pd.DataFrame, metric: str, leader: int | None, note: str = ""
) -> Figure:
    """An empty figure of so many inches under its heading: what it shows, of which trials, and the best."""
    figure = Figure(figsize=(max(across, 6.4), down), dpi=DPI)
    value = trials.loc[trials["number"] == leader, "value"]
    summary = (
        f"best (orange): trial {leader}, {fitted(metric, 2.5, 11)} {written(float(value.iloc[0]), metric)}"
        if leader is not None
        else "no trial has finished"
    )
    heading(figure, f"{what}: {count(len(trials), 'trial')}", _tally(trials), summary, note)
    return figure


def written(value: float, metric: str) -> str:
    """`81.3 %` of an accuracy, four digits of anything else."""
    return percent(value) if "accuracy" in metric else f"{value:.4g}"


def tick_label(value: float, metric: str) -> str:
    """`80 %` of an accuracy: as short as it can be exactly."""
    return f"{100 * value:.4g} %" if "accuracy" in metric else f"{value:.4g}"


def value_ticks(axis: Axis, metric: str) -> None:
    """Per cent on the axis of an accuracy; other metrics have matplotlib's numbers."""
    if "accuracy" in metric:
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(value, metric)))


def value_colours(direction: Direction) -> Colormap:
    """From a value to its colour."""
    return DARKER_IS_BETTER if direction == "maximize" else DARKER_IS_BETTER.reversed()


def colour_range(values: NDArray, direction: Direction) -> Normalize:
    """From the best to the worst, of ten or more to the worst but a tenth: some that learnt nothing take no colours."""
    spare = 0.1 if len(values) >= 10 else 0
    low, high = (spare, 1) if direction == "maximize" else (0, 1 - spare)
    return Normalize(np.quantile(values, low), np.quantile(values, high), clip=True)


def colour_key(figure: Figure, axes: Axes, norm: Normalize, direction: Direction, metric: str, *, right: float) -> None:
    """The colours' meaning, `right` inches right of the axes; nothing if there is one value only."""
    if norm.vmin == norm.vmax:
        return
    across, down = figure.get_size_inches()
    place = axes.get_position()
    key = axes_at(figure, place.x1 * across + right, place.y0 * down, 0.15, place.height * down)
    bar = figure.colorbar(ScalarMappable(norm, value_colours(direction)), cax=key)
    bar.set_label(fitted(metric, max(place.height * down, 1.5), 10))
    value_ticks(key.yaxis, metric)


def spans_decades(values: NDArray, direction: Direction) -> bool:
    """Whether a scale of equal steps would flatten the good values: an accuracy near chance does not, a loss may."""
    return bool(direction == "minimize" and values.min() > 0 and values.max() > 20 * values.min())


def value_axis(axes: Axes, values: NDArray, metric: str, direction: Direction, inches: float) -> None:
    """Label the y axis of `inches` with the metric, on a log scale where its values, finite or not, need that."""
    values = values[np.isfinite(values)]
    if spans_decades(values, direction):
        axes.set_yscale("log")
    plain_axes(axes, metric, inches)


def plain_axes(axes: Axes, metric: str, inches: float) -> None:
    """The metric's name and ticks on a y axis of `inches`, faint lines across, no frame."""
    value_ticks(axes.yaxis, metric)
    axes.set_ylabel(fitted(metric, inches, 10), parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
