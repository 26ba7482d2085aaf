"""Figure of a search: the best value for each pair of values of two settings."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pipeline.config.monitor import Direction
from pipeline.evaluation.figures.axis_scale import Space, setting_names, setting_scale
from pipeline.evaluation.figures.search_style import (
    LEADER,
    STAR,
    Winner,
    color_key,
    find_leader,
    new_figure,
    none_finished,
    value_colors,
)
from pipeline.evaluation.figures.style import GREY, Figure, axes_at, default_style, ellipsize, text_width, titled
from pipeline.evaluation.ranking import finished, sign
from pipeline.runtime.text import format_metric


@default_style()
def heat_map(
    trials: pd.DataFrame,
    *,
    metric: str,
    direction: Direction,
    rows: str,
    columns: str,
    space: Space,
    subject: str = "",
    winner: Winner | None = None,
) -> Figure:
    """Draw the best value for each pair of values of two settings, and how many trials have finished there.

    A setting of many values is cut into eight equal ranges, of its logarithm if its scale is logarithmic.

    Raises:
        ValueError: `rows` and `columns` are not two searched settings.
    """
    names = setting_names(trials)
    if rows == columns or not {rows, columns} <= set(names):
        raise ValueError(
            f"rows and columns must be two searched settings of {', '.join(names)}, got {rows!r} and {columns!r}"
        )
    title = f"{rows} and {columns}"
    if (leader := find_leader(trials, metric=metric, direction=direction, winner=winner)) is None:
        return none_finished(trials, titled(title, subject))
    tried = trials[trials["state"] != "duplicate"]
    y, x = (setting_scale(tried, name, space) for name in (rows, columns))
    cells = y.cell(), x.cell()
    values, counts = _cell_values(tried, cells, (y.cells, x.cells), direction)

    cell_height = min(0.95, 7 / max(values.shape))  # inches
    cell_width = max(cell_height, 0.6)
    width, height = cell_width * x.cells, cell_height * y.cells
    y_labels, x_labels = ([ellipsize(label, 1.5, 9) for label in scale.labels] for scale in (y, x))
    longest = max(text_width(label, 9) for label in x_labels)
    upright = longest > 0.95 * cell_width
    labels_width = max(text_width(label, 9) for label in y_labels) + 0.5
    labels_height = (longest if upright else 0.15) + 0.5
    left = max(labels_width, (6.6 - 1.3 - width + labels_width) / 2)
    note = f"in a cell: the best {ellipsize(metric, 2, 9)}, finished of tried trials; hatched: none finished"
    size = max(left + width + 1.3, 6.6), height + labels_height + 1.25
    figure = new_figure(*size, title, subject, trials, leader, note)
    axes = axes_at(figure, left, labels_height, width, height)
    norm = Normalize(np.nanmin(values), np.nanmax(values))
    axes.patch.set(facecolor="white", hatch="////", edgecolor="0.8")
    axes.imshow(values, cmap=value_colors(direction), norm=norm, origin="lower", aspect="auto", interpolation="nearest")
    written = _write_cells(axes, values, counts, norm, metric, direction, cell_width, cell_height)
    row, column = (int(cell[tried["number"] == leader.number][0]) for cell in cells)
    axes.plot(column - 0.5, row + 0.5, **STAR, clip_on=False, zorder=5)
    frame: dict[str, Any] = {"fill": False, "edgecolor": LEADER, "linewidth": 2.5, "zorder": 4, "clip_on": False}
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **frame))
    axes.set_xticks(x.cell_ticks(), x_labels, rotation=90 if upright else 0, fontsize=9, parse_math=False)
    axes.set_yticks(y.cell_ticks(), y_labels, fontsize=9, parse_math=False)
    axes.set_xlabel(ellipsize(columns, max(width, 3), 10), parse_math=False)
    axes.set_ylabel(ellipsize(rows, max(height, 1), 10), parse_math=False)
    axes.tick_params(bottom=not x.few, left=not y.few)
    axes.set_xticks(np.arange(1, x.cells) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, y.cells) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    if not written:
        color_key(figure, axes, norm, direction, metric, right=0.15)
    return figure


def _cell_values(
    tried: pd.DataFrame, cells: tuple[NDArray, NDArray], shape: tuple[int, int], direction: Direction
) -> tuple[NDArray, NDArray]:
    """Return the best value of each cell of a heat map, and its numbers of trials.

    Args:
        tried: The trials.
        cells: Row and column of each trial's cell, (trials,) each.
        shape: Number of rows and columns.
        direction: Whether the value is maximized or minimized.

    Returns:
        (rows, columns) of values, NaN where no trial has finished, and (3, rows, columns) of finished,
        tried and infeasible trials.
    """
    done = tried["number"].isin(finished(tried)["number"]).to_numpy()
    done_cells = cells[0][done], cells[1][done]
    scores = np.full(shape, -np.inf)
    np.maximum.at(scores, done_cells, sign(direction) * tried["value"].to_numpy(float)[done])
    counts = np.zeros((3, *shape), int)
    np.add.at(counts[0], done_cells, 1)
    np.add.at(counts[1], cells, 1)
    infeasible = (tried["state"] == "infeasible").to_numpy()
    np.add.at(counts[2], (cells[0][infeasible], cells[1][infeasible]), 1)
    return np.where(counts[0] > 0, sign(direction) * scores, np.nan), counts


def _write_cells(
    axes: Axes,
    values: NDArray,
    counts: NDArray,
    norm: Normalize,
    metric: str,
    direction: Direction,
    width: float,
    height: float,
) -> bool:
    """Write value and finished of tried trials into the cells, of `width` by `height` inches, if it can be read.

    Returns:
        Whether it was written.
    """
    longest = max(format_metric(metric, value) for value in values[np.isfinite(values)])
    size = min(10, 0.28 * 72 * height, 0.9 * width / text_width(longest, 1))  # points
    # A text takes a millisecond to draw.
    if size < 5 or np.count_nonzero(counts[1]) > 600:
        return False
    for row, column in zip(*np.nonzero(counts[1]), strict=True):
        value, (done, tried, infeasible) = values[row, column], counts[:, row, column]
        if done:
            shade = norm(value) if direction == "maximize" else 1 - norm(value)
            text, color = f"{format_metric(metric, value)}\n{done} of {tried}", "white" if shade > 0.4 else "black"
        else:
            text, color = "infeasible" if infeasible == tried else f"0 of {tried}", GREY
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)
    return True
