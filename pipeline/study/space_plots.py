"""Pictures of where in its space a search found what: a table of trials in, matplotlib Figure out; no files, no pyplot.

The table is described in `pipeline.study.standings`; `log` names the settings searched on a logarithmic scale.
"""

from collections.abc import Collection
from dataclasses import replace
from math import ceil, sqrt

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.study.scale import Scale, line_scale, setting_names, setting_scale, setting_scales
from pipeline.study.standings import Direction, best, finished, sign
from pipeline.study.study_style import (
    DARKER_IS_BETTER,
    MARKS,
    RING,
    canvas,
    colour_key,
    colour_range,
    none_finished,
    spans_decades,
    tick_label,
    value_axis,
    value_colours,
    written,
)
from pipeline.style import QUIET, VERMILLION, axes_at, finite_or_nan, fitted, width_of


def parallel_coordinates(trials: pd.DataFrame, *, metric: str, direction: Direction, log: Collection[str]) -> Figure:
    """A line a finished trial through its settings to its value, which is on the right with the best on top.

    `log` names the settings that were searched on a logarithmic scale. On axes of few values lines are spread a little
    around their value so that they can be told apart.
    """
    if (leader := best(trials, direction=direction)) is None:
        return none_finished(trials)
    done = finished(trials).sort_values("value", ascending=direction == "maximize")  # the best is drawn last
    values = done["value"].to_numpy(float)
    settings = setting_scales(done, log)
    score = _score_scale(values, metric, direction)
    scales = [*settings, score]
    gap = min(max(1.15, 6.2 / len(scales)), 2.4)  # inches between axes
    figure = canvas(gap * len(settings) + 2.8, 5.7, "Parallel coordinates", trials, metric, leader)
    axes = axes_at(figure, 0.8, 0.35, gap * len(settings), 3.75)
    heights = np.column_stack([scale.spread(done["number"]) for scale in settings] + [score.places])
    lines = np.stack([np.broadcast_to(np.arange(len(scales)), heights.shape), heights], axis=-1)  # (trials, axes, 2)
    norm = colour_range(values, direction)
    is_leader = (done["number"] == leader).to_numpy()
    axes.add_collection(
        LineCollection(
            list(lines[~is_leader]), colors=value_colours(direction)(norm(values[~is_leader])), linewidths=1, alpha=0.7
        )
    )
    axes.plot(*lines[is_leader][0].T, color=VERMILLION, linewidth=2.5, marker="o", markersize=5, zorder=4)

    paper = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}  # over the lines
    for place, scale in enumerate(scales):
        axes.axvline(place, color="black", linewidth=0.8, zorder=3)
        name = _wrapped(scale.name, gap - 0.1) + ("\n(best on top)" if scale is score else "")
        axes.text(place, 1.06, name, ha="center", va="bottom", fontsize=9, parse_math=False)
        for tick, label in zip(scale.ticks, scale.labels, strict=True):
            axes.plot([place, place + 0.05 / gap], [tick, tick], color="black", linewidth=0.8, zorder=3)
            axes.annotate(
                fitted(label, (1.6 if scale is score else gap) - 0.3, 8),
                (place, tick),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                bbox=paper,
                zorder=5,
                parse_math=False,
            )
    axes.set(xlim=(0, len(settings)), ylim=(-0.03, 1.03))
    axes.set_axis_off()
    for artist in (*axes.lines, *axes.collections):
        artist.set_clip_on(False)
    colour_key(figure, axes, norm, direction, metric, right=0.95)
    return figure


def slices(trials: pd.DataFrame, *, metric: str, direction: Direction, log: Collection[str]) -> Figure:
    """The value against each setting, a panel a setting; later trials are darker.

    `log` names the settings that were searched on a logarithmic scale. Values that were taken by several trials are
    spread a little. A pruned trial stands at the value it was stopped with.
    """
    if (leader := best(trials, direction=direction)) is None:
        return none_finished(trials)
    pruned = trials[(trials["state"] == "pruned") & np.isfinite(finite_or_nan(trials["value"].to_numpy(float)))]
    shown = pd.concat([finished(trials), pruned]).sort_values("number")
    is_done = (shown["state"] == "complete").to_numpy()
    numbers, values = shown["number"].to_numpy(), shown["value"].to_numpy(float)
    settings = setting_scales(shown, log)
    columns = ceil(sqrt(len(settings))) if len(settings) > 4 else len(settings)
    rows = ceil(len(settings) / columns)
    wide, high = max(2.3, 5.2 / columns), 2.1 if columns > 1 else 3.0  # inches
    figure = canvas(wide * columns + 2.1, (high + 0.65) * rows + 1.0, "Slices", trials, metric, leader)
    norm = Normalize(trials["number"].min(), trials["number"].max())
    for index, setting in enumerate(settings):
        row, column = divmod(index, columns)
        bottom = 0.55 + (rows - 1 - row) * (high + 0.65)
        axes = axes_at(figure, 0.95 + wide * column, bottom, wide - 0.15, high)
        places = setting.spread(shown["number"])
        axes.plot(places[~is_done], values[~is_done], linestyle="none", markersize=4, **MARKS["pruned"], label="pruned")
        axes.scatter(
            places[is_done],
            values[is_done],
            c=numbers[is_done],
            cmap=DARKER_IS_BETTER,
            norm=norm,
            s=14 if len(shown) > 60 else 30,
            edgecolors="white",
            linewidths=0.3,
            zorder=3,
        )
        axes.plot(places[numbers == leader], values[numbers == leader], linestyle="none", **RING, zorder=4)
        _setting_axis(axes, setting, wide - 0.2)
        value_axis(axes, values, metric, direction, high)
        if column:
            axes.set_ylabel("")
            axes.tick_params(labelleft=False)
    if not is_done.all():
        figure.axes[0].legend(
            loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0, fontsize=8, handletextpad=0.2
        )
    if len(trials) > 1:
        key = axes_at(figure, wide * columns + 1.05, 0.55, 0.15, min((high + 0.65) * rows - 0.65, 3))
        bar = figure.colorbar(ScalarMappable(norm, DARKER_IS_BETTER), cax=key)
        bar.locator = MaxNLocator(5, integer=True)
        bar.set_label("trial")
    return figure


def heat_map(
    trials: pd.DataFrame, *, metric: str, direction: Direction, rows: str, columns: str, log: Collection[str]
) -> Figure:
    """The best value for each pair of two settings' values, and how many trials have finished there.

    A setting of many values is cut into eight equal ranges, of its logarithm if it is in `log`. Raises ValueError
    unless `rows` and `columns` are two searched settings.
    """
    names = setting_names(trials)
    if rows == columns or not {rows, columns} <= set(names):
        raise ValueError(
            f"rows and columns must be two searched settings of {', '.join(names)}: got {rows!r} and {columns!r}"
        )
    if (leader := best(trials, direction=direction)) is None:
        return none_finished(trials)
    tried = trials[trials["state"] != "duplicate"]
    down, across = (setting_scale(tried, name, log=name in log) for name in (rows, columns))
    at = down.cell(), across.cell()
    values, counts = _cells(tried, at, (down.cells, across.cells), direction)

    cell = min(0.95, 7 / max(values.shape))  # inches
    wide, high = max(cell, 0.6) * across.cells, cell * down.cells
    beside, below = ([fitted(label, 1.5, 9) for label in scale.labels] for scale in (down, across))
    longest = max(width_of(label, 9) for label in below)
    upright = longest > 0.95 * wide / across.cells
    names_beside, names_below = max(width_of(label, 9) for label in beside) + 0.5, (longest if upright else 0.15) + 0.5
    left = max(names_beside, (6.6 - 1.3 - wide + names_beside) / 2)
    figure = canvas(
        max(left + wide + 1.3, 6.6),
        high + names_below + 1.25,
        "Heat map",
        trials,
        metric,
        leader,
        "in a cell: the best value, finished of tried trials; hatched: none finished",
    )
    axes = axes_at(figure, left, names_below, wide, high)
    norm = Normalize(np.nanmin(values), np.nanmax(values))
    axes.patch.set(facecolor="white", hatch="////", edgecolor="0.8")
    axes.imshow(
        values, cmap=value_colours(direction), norm=norm, origin="lower", aspect="auto", interpolation="nearest"
    )
    _write_cells(axes, values, counts, norm, metric, direction, wide / across.cells, cell)
    row, column = (int(cells[tried["number"] == leader][0]) for cells in at)
    axes.add_patch(
        Rectangle(
            (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=VERMILLION, linewidth=2.5, zorder=4, clip_on=False
        )
    )
    axes.set_xticks(across.cell_ticks(), below, rotation=90 if upright else 0, fontsize=9, parse_math=False)
    axes.set_yticks(down.cell_ticks(), beside, fontsize=9, parse_math=False)
    axes.set_xlabel(fitted(columns, max(wide, 3), 10), parse_math=False)
    axes.set_ylabel(fitted(rows, max(high, 1), 10), parse_math=False)
    axes.tick_params(bottom=not across.discrete, left=not down.discrete)
    axes.set_xticks(np.arange(1, across.cells) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, down.cells) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    colour_key(figure, axes, norm, direction, metric, right=0.15)
    return figure


def _score_scale(values: NDArray, metric: str, direction: Direction) -> Scale:
    """The metric's axis, the best at the top."""
    if not np.ptp(values):
        return Scale(metric, np.full(len(values), 0.5), [0.5], [written(values[0], metric)], discrete=True, cells=1)
    log = spans_decades(values, direction)
    scale = line_scale(metric, values, log=log, write=lambda value: tick_label(value, metric))
    if direction == "maximize":
        return scale
    return replace(scale, places=1 - scale.places, ticks=[1 - tick for tick in scale.ticks])


def _setting_axis(axes: Axes, setting: Scale, inches: float) -> None:
    """Words are cut to fit; of numbers those are left out that would touch the one before."""
    room = max(inches / len(setting.ticks) - 0.08, 0.3) if setting.ticks else inches
    ticks, labels, free = [], [], -1.0
    for tick, label in zip(setting.ticks, setting.labels, strict=True):
        label = fitted(label, room if setting.discrete else inches, 8)
        half = width_of(label, 8) / 2
        if inches * tick - half > free:
            ticks.append(tick)
            labels.append(label)
            free = inches * tick + half + 0.05
    axes.set_xticks(ticks, labels, fontsize=8, parse_math=False)
    axes.set_xlim(-0.05, 1.05)
    axes.set_xlabel(fitted(setting.name, inches, 10), parse_math=False)


def _wrapped(name: str, inches: float) -> str:
    """The name in up to three lines, broken after underscores; a longer one loses its middle."""
    lines = [""]
    for word in name.replace("_", "_\n").split("\n"):
        if lines[-1] and width_of(lines[-1] + word, 9) > inches:
            lines.append("")
        lines[-1] += word
    lines = lines if len(lines) <= 3 else [lines[0], "…", lines[-1] or lines[-2]]
    return "\n".join(fitted(line, inches, 9) for line in lines)


def _cells(
    tried: pd.DataFrame, at: tuple[NDArray, NDArray], shape: tuple[int, int], direction: Direction
) -> tuple[NDArray, NDArray]:
    """(rows, columns) of the best values, NaN where none has finished, and (2, rows, columns) finished and tried."""
    known = (at[0] >= 0) & (at[1] >= 0)
    done = known & tried["number"].isin(finished(tried)["number"]).to_numpy()
    at_done = at[0][done], at[1][done]
    scores = np.full(shape, -np.inf)
    np.maximum.at(scores, at_done, sign(direction) * tried["value"].to_numpy(float)[done])
    counts = np.zeros((2, *shape), int)
    np.add.at(counts[0], at_done, 1)
    np.add.at(counts[1], (at[0][known], at[1][known]), 1)
    return np.where(counts[0] > 0, sign(direction) * scores, np.nan), counts


def _write_cells(
    axes: Axes,
    values: NDArray,
    counts: NDArray,
    norm: Normalize,
    metric: str,
    direction: Direction,
    wide: float,
    high: float,
) -> None:
    """Value and finished / tried in the cells of `wide` by `high` inches, where they can be read."""
    longest = max(written(value, metric) for value in values[np.isfinite(values)])
    size = min(10, 0.28 * 72 * high, 0.9 * wide / width_of(longest, 1))  # points
    if size < 5 or np.count_nonzero(counts[1]) > 600:  # a text takes a millisecond to draw
        return
    for row, column in zip(*np.nonzero(counts[1]), strict=True):
        value, (done, tried) = values[row, column], counts[:, row, column]
        if done:
            shade = norm(value) if direction == "maximize" else 1 - norm(value)
            text, colour = f"{written(value, metric)}\n{done} of {tried}", "white" if shade > 0.4 else "black"
        else:
            text, colour = f"0 of {tried}", QUIET
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)
