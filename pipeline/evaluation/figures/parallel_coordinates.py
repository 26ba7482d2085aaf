"""Figure of a search: a line for each finished trial through its settings to its value."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

from pipeline.evaluation.figures.axis_scale import AxisScale, line_scale, setting_scales
from pipeline.evaluation.figures.search_style import (
    color_key,
    color_range,
    format_metric,
    needs_log_scale,
    new_figure,
    none_finished,
    tick_label,
    value_colors,
)
from pipeline.evaluation.figures.style import VERMILLION, Figure, axes_at, default_style, ellipsize, text_width
from pipeline.evaluation.ranking import Direction, best, finished


@default_style()
def parallel_coordinates(trials: pd.DataFrame, *, metric: str, direction: Direction, log: Collection[str]) -> Figure:
    """Draw a line for each finished trial through its settings to its value, on the right with the best on top.

    On axes of few values the lines are spread a little around their value, so that they can be told apart.
    """
    if (leader := best(trials, direction=direction)) is None:
        return none_finished(trials)
    # in this order the best is drawn last
    done = finished(trials).sort_values("value", ascending=direction == "maximize")
    values = done["value"].to_numpy(float)
    settings = setting_scales(done, log)
    score = _score_scale(values, metric, direction)
    scales = [*settings, score]
    gap = min(max(1.15, 6.2 / len(scales)), 2.4)  # inches between axes
    figure = new_figure(gap * len(settings) + 2.8, 5.7, "Parallel coordinates", trials, metric, leader)
    axes = axes_at(figure, 0.8, 0.35, gap * len(settings), 3.75)
    heights = np.column_stack([scale.spread(done["number"]) for scale in settings] + [score.places])
    lines = np.stack([np.broadcast_to(np.arange(len(scales)), heights.shape), heights], axis=-1)  # (trials, axes, 2)
    norm = color_range(values, direction)
    is_leader = (done["number"] == leader).to_numpy()
    colors = value_colors(direction)(norm(values[~is_leader]))
    axes.add_collection(LineCollection(list(lines[~is_leader]), colors=colors, linewidths=1, alpha=0.7))
    axes.plot(*lines[is_leader][0].T, color=VERMILLION, linewidth=2.5, marker="o", markersize=5, zorder=4)

    # makes tick labels readable on top of the lines
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    for place, scale in enumerate(scales):
        axes.axvline(place, color="black", linewidth=0.8, zorder=3)
        name = _wrap(scale.name, gap - 0.1) + ("\n(best on top)" if scale is score else "")
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
    color_key(figure, axes, norm, direction, metric, right=0.95)
    return figure


def _score_scale(values: NDArray, metric: str, direction: Direction) -> AxisScale:
    """Return the scale of the metric's axis, with the best at the top."""
    if not np.ptp(values):
        label = format_metric(values[0], metric)
        return AxisScale(metric, np.full(len(values), 0.5), [0.5], [label], discrete=True, cells=1)
    log = needs_log_scale(values, direction)
    scale = line_scale(metric, values, log=log, format_tick=lambda value: tick_label(value, metric))
    if direction == "maximize":
        return scale
    return replace(scale, places=1 - scale.places, ticks=[1 - tick for tick in scale.ticks])


def _wrap(name: str, inches: float) -> str:
    """Return the name in up to three lines, broken after underscores; a longer one loses its middle."""
    lines = [""]
    for word in name.replace("_", "_\n").split("\n"):
        if lines[-1] and text_width(lines[-1] + word, 9) > inches:
            lines.append("")
        lines[-1] += word
    lines = lines if len(lines) <= 3 else [lines[0], "…", lines[-1] or lines[-2]]
    return "\n".join(ellipsize(line, inches, 9) for line in lines)
