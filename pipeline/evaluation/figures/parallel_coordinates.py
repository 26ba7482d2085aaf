"""Figure of a search: a line for each finished trial through its settings to its value."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

from pipeline.config.monitor import Direction
from pipeline.evaluation.figures.axis_scale import AxisScale, Space, linear_ticks, log_ticks, setting_scales
from pipeline.evaluation.figures.search_style import (
    STAR,
    Winner,
    color_range,
    find_leader,
    new_figure,
    none_finished,
    scale_of,
    tick_label,
    value_colors,
)
from pipeline.evaluation.figures.style import Figure, axes_at, default_style, ellipsize, text_width, titled
from pipeline.evaluation.figures.value_scale import ACCURACY_TICKS
from pipeline.evaluation.ranking import finished
from pipeline.runtime.text import format_metric


@default_style()
def parallel_coordinates(
    trials: pd.DataFrame,
    *,
    metric: str,
    direction: Direction,
    space: Space,
    subject: str = "",
    winner: Winner | None = None,
) -> Figure:
    """Draw a line for each finished trial through its settings to its value, on the right with the best on top.

    The better a trial is, the darker is its line. On axes of categories the lines are spread a little around the tick,
    so that they can be told apart.
    """
    title = "Parallel coordinates"
    if (leader := find_leader(trials, metric=metric, direction=direction, winner=winner)) is None:
        return none_finished(trials, titled(title, subject))
    # in this order the best is drawn last
    done = finished(trials).sort_values("value", ascending=direction == "maximize")
    values = done["value"].to_numpy(float)
    settings = setting_scales(done, space)
    score = _score_scale(values, metric, direction)
    scales = [*settings, score]
    gap = min(max(1.15, 6.2 / len(scales)), 2.4)  # inches between axes
    figure = new_figure(gap * len(settings) + 1.9, 5.3, title, subject, trials, leader)
    axes = axes_at(figure, 0.8, 0.35, gap * len(settings), 3.75)
    heights = np.column_stack([scale.spread() for scale in settings] + [score.places])
    lines = np.stack([np.broadcast_to(np.arange(len(scales)), heights.shape), heights], axis=-1)  # (trials, axes, 2)
    norm = color_range(values, direction)
    is_leader = (done["number"] == leader.number).to_numpy()
    colors = value_colors(direction)(norm(values[~is_leader]))
    axes.add_collection(LineCollection(list(lines[~is_leader]), colors=colors, linewidths=1, alpha=0.7))
    path: dict[str, Any] = STAR | {"linestyle": "-", "linewidth": 2.5, "markevery": [-1]}
    axes.plot(*lines[is_leader][0].T, **path, zorder=6, label=leader.name)

    # makes tick labels readable on top of the lines
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    for place, scale in enumerate(scales):
        axes.axvline(place, color="black", linewidth=0.8, zorder=3)
        name = _wrap(scale.name, gap - 0.1) + ("\n(darker: better)" if scale is score else "")
        axes.text(place, 1.06, name, ha="center", va="bottom", fontsize=9, parse_math=False)
        for tick, label in zip(scale.ticks, scale.labels, strict=True):
            axes.plot([place, place + 0.05 / gap], [tick, tick], color="black", linewidth=0.8, zorder=3)
            axes.annotate(
                ellipsize(label, (1.6 if scale is score else gap) - 0.3, 8),
                (place, tick),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                bbox=box,
                zorder=5,
                parse_math=False,
            )
    axes.set(xlim=(0, len(settings)), ylim=(-0.03, 1.03))
    axes.set_axis_off()
    for artist in (*axes.lines, *axes.collections):
        artist.set_clip_on(False)
    return figure


def _score_scale(values: NDArray, metric: str, direction: Direction) -> AxisScale:
    """Return the scale of the metric's axis, with the best at the top."""
    scale = scale_of(values, metric, direction)
    low, high = values.min(), values.max()
    if low == high:
        return AxisScale(metric, np.full(len(values), 0.5), [0.5], [format_metric(metric, low)])
    if scale.kind == "error":
        candidates: Sequence[float] = ACCURACY_TICKS
    else:
        candidates = (log_ticks if scale.kind == "log" else linear_ticks)(low, high)
    ticks = [tick for tick in candidates if low <= tick <= high]
    bottom, top = scale.forward(np.array([low, high]))
    places = (scale.forward(np.array([*values, *ticks])) - bottom) / (top - bottom)
    if direction == "minimize":
        places = 1 - places
    labels = [tick_label(tick, metric) for tick in ticks]
    return AxisScale(metric, places[: len(values)], list(places[len(values) :]), labels)


def _wrap(name: str, inches: float) -> str:
    """Return the name in up to three lines, broken after underscores; a longer one loses its middle."""
    lines = [""]
    for word in name.replace("_", "_\n").split("\n"):
        if lines[-1] and text_width(lines[-1] + word, 9) > inches:
            lines.append("")
        lines[-1] += word
    lines = lines if len(lines) <= 3 else [lines[0], "…", lines[-1] or lines[-2]]
    return "\n".join(ellipsize(line, inches, 9) for line in lines)
