"""Pictures of how a study went and what it found: a table of trials in, matplotlib Figure out; no files, no pyplot.

The table is described in `pipeline.evaluation.ranking`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from pipeline.evaluation.figures.axis_scale import (
    AxisScale,
    line_scale,
    log_ticks,
    setting_names,
    setting_scale,
    setting_scales,
)
from pipeline.evaluation.figures.style import (
    BLUE,
    DPI,
    GREY,
    VERMILLION,
    axes_at,
    draw_title,
    ellipsize,
    finite_or_nan,
    text_figure,
    text_width,
)
from pipeline.evaluation.ranking import Direction, best, finished, pareto_front, sign
from pipeline.runtime.text import count, format_value, percent, short_settings, trial_name

DARKER_IS_BETTER = ListedColormap(colormaps["Blues"](np.linspace(0.25, 1, 256)))  # its palest would not show on white
MARKS: dict[str, dict[str, Any]] = {  # how a trial that is not complete is drawn
    "pruned": {"marker": "x", "color": GREY, "alpha": 0.7},
    "duplicate": {"marker": "D", "markersize": 5, "color": BLUE, "markerfacecolor": "none"},
    "failed": {"marker": "X", "color": "black", "markeredgewidth": 0},
    "infeasible": {"marker": "s", "markersize": 5, "color": GREY, "markerfacecolor": "none"},
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
    return text_figure(f"No trial has finished\n{_tally(trials)}" if len(trials) else "No trial has finished")


def states_of(trials: pd.DataFrame) -> list[str]:
    """The states that occur, in the order in which they are named and drawn."""
    order = ["complete", *MARKS]
    occurring = set(trials["state"])
    return [state for state in order if state in occurring] + sorted(occurring - set(order))


def _tally(trials: pd.DataFrame) -> str:
    return ", ".join(f"{(trials['state'] == state).sum():,} {state}" for state in states_of(trials))


def new_figure(
    across: float, down: float, what: str, trials: pd.DataFrame, metric: str, leader: int | None, note: str = ""
) -> Figure:
    """An empty figure of so many inches under its heading: what it shows, of which trials, and the best."""
    figure = Figure(figsize=(max(across, 6.4), down), dpi=DPI)
    value = trials.loc[trials["number"] == leader, "value"]
    summary = (
        f"best (orange): trial {leader}, {ellipsize(metric, 2.5, 11)} {written(float(value.iloc[0]), metric)}"
        if leader is not None
        else "no trial has finished"
    )
    draw_title(figure, f"{what}: {count(len(trials), 'trial')}", _tally(trials), summary, note)
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
    bar.set_label(ellipsize(metric, max(place.height * down, 1.5), 10))
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
    axes.set_ylabel(ellipsize(metric, inches, 10), parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)


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
    figure = new_figure(gap * len(settings) + 2.8, 5.7, "Parallel coordinates", trials, metric, leader)
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
                ellipsize(label, (1.6 if scale is score else gap) - 0.3, 8),
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
    figure = new_figure(wide * columns + 2.1, (high + 0.65) * rows + 1.0, "Slices", trials, metric, leader)
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
    beside, below = ([ellipsize(label, 1.5, 9) for label in scale.labels] for scale in (down, across))
    longest = max(text_width(label, 9) for label in below)
    upright = longest > 0.95 * wide / across.cells
    names_beside, names_below = (
        max(text_width(label, 9) for label in beside) + 0.5,
        (longest if upright else 0.15) + 0.5,
    )
    left = max(names_beside, (6.6 - 1.3 - wide + names_beside) / 2)
    figure = new_figure(
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
    axes.set_xlabel(ellipsize(columns, max(wide, 3), 10), parse_math=False)
    axes.set_ylabel(ellipsize(rows, max(high, 1), 10), parse_math=False)
    axes.tick_params(bottom=not across.discrete, left=not down.discrete)
    axes.set_xticks(np.arange(1, across.cells) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, down.cells) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    colour_key(figure, axes, norm, direction, metric, right=0.15)
    return figure


def _score_scale(values: NDArray, metric: str, direction: Direction) -> AxisScale:
    """The metric's axis, the best at the top."""
    if not np.ptp(values):
        return AxisScale(metric, np.full(len(values), 0.5), [0.5], [written(values[0], metric)], discrete=True, cells=1)
    log = spans_decades(values, direction)
    scale = line_scale(metric, values, log=log, write=lambda value: tick_label(value, metric))
    if direction == "maximize":
        return scale
    return replace(scale, places=1 - scale.places, ticks=[1 - tick for tick in scale.ticks])


def _setting_axis(axes: Axes, setting: AxisScale, inches: float) -> None:
    """Words are cut to fit; of numbers those are left out that would touch the one before."""
    room = max(inches / len(setting.ticks) - 0.08, 0.3) if setting.ticks else inches
    ticks, labels, free = [], [], -1.0
    for tick, label in zip(setting.ticks, setting.labels, strict=True):
        label = ellipsize(label, room if setting.discrete else inches, 8)
        half = text_width(label, 8) / 2
        if inches * tick - half > free:
            ticks.append(tick)
            labels.append(label)
            free = inches * tick + half + 0.05
    axes.set_xticks(ticks, labels, fontsize=8, parse_math=False)
    axes.set_xlim(-0.05, 1.05)
    axes.set_xlabel(ellipsize(setting.name, inches, 10), parse_math=False)


def _wrapped(name: str, inches: float) -> str:
    """The name in up to three lines, broken after underscores; a longer one loses its middle."""
    lines = [""]
    for word in name.replace("_", "_\n").split("\n"):
        if lines[-1] and text_width(lines[-1] + word, 9) > inches:
            lines.append("")
        lines[-1] += word
    lines = lines if len(lines) <= 3 else [lines[0], "…", lines[-1] or lines[-2]]
    return "\n".join(ellipsize(line, inches, 9) for line in lines)


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
    size = min(10, 0.28 * 72 * high, 0.9 * wide / text_width(longest, 1))  # points
    if size < 5 or np.count_nonzero(counts[1]) > 600:  # a text takes a millisecond to draw
        return
    for row, column in zip(*np.nonzero(counts[1]), strict=True):
        value, (done, tried) = values[row, column], counts[:, row, column]
        if done:
            shade = norm(value) if direction == "maximize" else 1 - norm(value)
            text, colour = f"{written(value, metric)}\n{done} of {tried}", "white" if shade > 0.4 else "black"
        else:
            text, colour = f"0 of {tried}", GREY
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


COSTS = {  # in a title, and along an axis
    "parameters": ("model size", "parameters"),
    "epoch_seconds": ("training time", "seconds an epoch"),
    "latency_ms": ("latency", "milliseconds an image, one at a time"),
}


def optimization_history(trials: pd.DataFrame, *, metric: str, direction: Direction) -> Figure:
    """Every trial's value in the order of the trials, and the best so far as a line.

    Trials without a value are marked below, in a row for each state.
    """
    if (leader := best(trials, direction=direction)) is None:
        return none_finished(trials)
    values = finite_or_nan(trials["value"].to_numpy(float))
    without = [state for state in states_of(trials) if np.isnan(values[trials["state"] == state]).any()]
    strip = 0.1 + 0.2 * len(without) if without else 0  # inches
    figure = new_figure(8.6, 4.95 + strip, "Optimization history", trials, metric, leader)
    axes = axes_at(figure, 0.95, 0.55 + strip, 7.35, 3.3)
    below = axes_at(figure, 0.95, 0.55, 7.35, strip) if without else axes

    dense = 4 if len(trials) > 60 else 6  # points
    for state in states_of(trials):
        rows = (trials["state"] == state).to_numpy()
        style: dict[str, Any] = {"linestyle": "none", "markersize": dense} | MARKS.get(
            state, {"marker": "o", "color": BLUE}
        )
        style["markersize"] = min(style["markersize"], dense)
        valued = rows & np.isfinite(values)
        if valued.any():
            axes.plot(trials["number"][valued], values[valued], **style, label=state)
        if state in without:
            numbers = trials["number"][rows & np.isnan(values)]
            below.plot(numbers, np.full(len(numbers), without.index(state)), **style)
    done = finished(trials)
    so_far = sign(direction) * np.maximum.accumulate(sign(direction) * done["value"].to_numpy(float))
    last = trials["number"].max()
    axes.step(
        [*done["number"], last], [*so_far, so_far[-1]], where="post", color=VERMILLION, zorder=3, label="best so far"
    )
    axes.plot(leader, so_far[-1], **RING, zorder=4)
    value_axis(axes, values, metric, direction, 3.3)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=6, frameon=False, borderaxespad=0, handletextpad=0.4)
    if without:
        axes.tick_params(labelbottom=False, bottom=False)
        below.set_yticks(range(len(without)), without, fontsize=8)
        below.set_ylim(len(without) - 0.4, -0.6)
        below.tick_params(left=False)
        below.spines[["top", "right", "left"]].set_visible(False)
    margin = max(0.5, 0.02 * last)
    for panel in (axes, below):
        panel.set_xlim(trials["number"].min() - margin, last + margin)
    below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    below.set_xlabel("trial")
    return figure


def intermediate_curves(
    curves: Mapping[int, Sequence[float]], trials: pd.DataFrame, *, metric: str, direction: Direction
) -> Figure:
    """The metric after every epoch of every trial: the best thick, the unfinished faint with a mark where they ended.

    `curves` has by trial number one value an epoch, the first being epoch 1; values that are not finite leave a gap.
    Drawn also where no trial has finished, as long as one has ended an epoch.
    """
    states = dict(zip(trials["number"], trials["state"], strict=True))
    lines = {number: finite_or_nan(curves[number]) for number in sorted(curves) if number in states}
    lines = {number: values for number, values in lines.items() if np.isfinite(values).any()}
    if not lines:
        return none_finished(trials)
    leader = best(trials, direction=direction)
    figure = new_figure(8.6, 5.2, "Intermediate values", trials, metric, leader)
    axes = axes_at(figure, 0.95, 0.6, 7.35, 3.6)
    fade = min(1.0, max(0.25, 15 / len(lines)))
    for state in dict.fromkeys(["complete", *states_of(trials)]):
        mine = [values for number, values in lines.items() if states[number] == state and number != leader]
        if not mine:
            continue
        complete = state == "complete"
        style: dict[str, Any] = {"marker": "o", "color": BLUE} if complete else MARKS.get(state, {"marker": "."})
        axes.add_collection(
            LineCollection(
                [np.column_stack([np.arange(1, len(values) + 1), values]) for values in mine],
                colors=BLUE if complete else GREY,
                linewidths=1,
                alpha=fade if complete else 0.5 * fade,
                zorder=2 if complete else 1,
            )
        )
        ends = [np.flatnonzero(np.isfinite(values))[-1] for values in mine]
        last = [values[end] for values, end in zip(mine, ends, strict=True)]
        axes.plot(
            np.array(ends) + 1,
            last,
            **{"linestyle": "none"} | style | {"markersize": 3 if complete else 5, "alpha": max(fade, 0.5)},
            zorder=2 if complete else 3,
            label=f"{state} (where it ended)" if not complete else state,
        )
    if leader in lines:
        values = lines[leader]
        dots: dict[str, Any] = {"marker": "o", "markersize": 4} if len(values) <= 30 else {}
        axes.plot(
            range(1, len(values) + 1),
            values,
            color=VERMILLION,
            linewidth=2.2,
            zorder=4,
            **dots,
            label=f"best: trial {leader}",
        )
    epochs = max(map(len, lines.values()))
    axes.set(xlabel="epoch", xlim=(0.5, epochs + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    value_axis(axes, np.concatenate(list(lines.values())), metric, direction, 3.6)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=6, frameon=False, borderaxespad=0, fontsize=9)
    return figure


def value_vs_cost(trials: pd.DataFrame, *, metric: str, direction: Direction, cost: str = "parameters") -> Figure:
    """The value of every finished trial against a cost, of which less is better; those that none beats in both named.

    A name has the settings in which the finished trials differ, or the trial's number if they are many; and the latency
    where it was measured.

    Args:
        cost: a column of the table, positive numbers.
    """
    title, label = COSTS.get(cost, (ellipsize(cost, 2.5, 11), cost))
    if (leader := best(trials, direction=direction)) is None:
        return none_finished(trials)
    done = finished(trials)
    done = done[pd.to_numeric(done[cost]) > 0]
    sizes, values = np.log10(done[cost].to_numpy(float)), done["value"].to_numpy(float)
    front = pareto_front(done, direction=direction, cost=cost)
    if not front:
        return text_figure(f"No trial has said its {title}")
    members = [int(np.flatnonzero(done["number"] == number)[0]) for number in front]
    names = _labels(done, members)

    wide, high, size = 6.6, 3.6, 8  # inches, inches, points
    across = _unit(sizes)
    widths = [text_width(name, size) for name in names]
    room = [  # names stand left of their points, where by definition no other trial is
        (width + 0.2 - across[row] * (wide - 0.3)) / (1 - across[row])
        for width, row in zip(widths, members, strict=True)
        if across[row] < 1
    ]
    pad = max(0.3, *room) if room else 0.3
    x = pad + across * (wide - pad - 0.3)  # inches
    up = _unit(sign(direction) * values) * (high - 0.6) + 0.2  # inches, the better the higher
    boxes = _placed(x[members], up[members], widths, 0.15)
    high = max(high, *(box.top + 0.1 for box in boxes))

    figure = new_figure(
        wide + 1.3, high + 1.75, f"{ellipsize(metric, 2.5, 11)} against {title}", trials, metric, leader
    )
    axes = axes_at(figure, 0.95, 0.6, wide, high)
    axes.set_xscale("log")
    lows = sizes.min(), values.min() if direction == "maximize" else values.max()
    steps = (
        (np.ptp(sizes) / max(np.ptp(x), 1e-9) or 0.1),
        (sign(direction) * np.ptp(values) / max(np.ptp(up), 1e-9) or 0.01),
    )
    left, right = (lows[0] + steps[0] * (place - x.min()) for place in (0, wide))
    bottom, top = (lows[1] + steps[1] * (place - up.min()) for place in (0, high))
    axes.set_xlim(10**left, 10**right)
    axes.set_ylim(*sorted((bottom, top)))

    axes.plot(10**sizes, values, "o", color=BLUE, alpha=0.45, markersize=4 if len(done) > 60 else 6, markeredgewidth=0)
    axes.step(10 ** sizes[members], values[members], where="post", color=VERMILLION, linewidth=1.2, zorder=3)
    axes.plot(
        10 ** sizes[members], values[members], "o", color=VERMILLION, markersize=6, zorder=4, label="Pareto front"
    )
    is_leader = (done["number"] == leader).to_numpy()
    axes.plot(10 ** sizes[is_leader], values[is_leader], linestyle="none", **RING, zorder=5)
    for box, name, row in zip(boxes, names, members, strict=True):
        at = 10 ** (lows[0] + steps[0] * (box.right - x.min())), lows[1] + steps[1] * (box.middle - up.min())
        axes.text(*at, name, ha="right", va="center", fontsize=size, parse_math=False)
        if box.bottom - up[row] > 0.1:
            axes.plot([10 ** sizes[row], at[0]], [values[row], at[1]], color=GREY, linewidth=0.6, zorder=2)
    _decade_ticks(axes, 10**left, 10**right)
    axes.set_xlabel(f"{label} (log scale)")
    plain_axes(axes, metric, high)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, borderaxespad=0)
    return figure


def parameter_importances(importances: Mapping[str, float], *, metric: str) -> Figure:
    """How much of the metric's variation each setting explains, most first.

    `importances` are fractions, as `optuna.importance.get_param_importances` returns them; it needs two finished
    trials, so an empty mapping is answered in words.
    """
    if not importances:
        return text_figure("Not enough trials have finished to say what matters")
    shares = dict(zip(importances, np.nan_to_num(finite_or_nan(list(importances.values()))), strict=True))
    ranked = sorted(shares, key=lambda name: -shares[name])
    names = [ellipsize(name, 2.4, 10) for name in ranked]
    beside, high = max(text_width(name, 10) for name in names) + 0.25, 0.34 * len(ranked)
    across = max(beside + 4.8, 6.4)
    figure = Figure(figsize=(across, high + 1.3), dpi=DPI)
    draw_title(
        figure, f"What mattered for {ellipsize(metric, 3.5, 11)}", "share of its variation that each setting explains"
    )
    axes = axes_at(figure, beside, 0.5, across - beside - 0.75, high)
    lengths = [shares[name] for name in ranked]
    places = range(len(ranked))
    axes.barh(places, lengths, height=0.65, color=BLUE)
    for place, length in zip(places, lengths, strict=True):
        axes.annotate(percent(length), (length, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(places, names, parse_math=False)
    axes.set(ylim=(len(ranked) - 0.5, -0.5), xlim=(0, max(*lengths, 0.01)))
    axes.tick_params(left=False)
    value_ticks(axes.xaxis, "accuracy")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


@dataclass(frozen=True)
class _Box:
    """A name's place in inches from the axes' corner; `foot` is the point it belongs to."""

    left: float
    right: float
    bottom: float
    top: float
    foot: tuple[float, float]

    @property
    def middle(self) -> float:
        return (self.bottom + self.top) / 2


def _placed(x: NDArray, up: NDArray, widths: Sequence[float], height: float) -> list[_Box]:
    """A box for each point of a front that rises to the right: left above it, and above the boxes it would cover."""
    boxes: list[_Box] = []
    for at, foot, width in zip(x, up, widths, strict=True):
        bottom = foot + 0.05
        while met := [box for box in boxes if bottom < box.top and box.foot[0] > at - 0.08 - width]:
            bottom = max(box.top for box in met)
        boxes.append(_Box(at - 0.08 - width, at - 0.08, bottom, bottom + height, (at, foot)))
    return boxes


def _labels(done: pd.DataFrame, members: Sequence[int]) -> list[str]:
    names = [name for name in setting_names(done) if len({format_value(value) for value in done[f"params.{name}"]}) > 1]
    names = names or setting_names(done)
    settings = [short_settings({name: done[f"params.{name}"].iloc[row] for name in names}) for row in members]
    if max(map(len, settings)) > 24:
        settings = [trial_name(int(done["number"].iloc[row]), {}) for row in members]
    latencies = done["latency_ms"].iloc[list(members)] if "latency_ms" in done else [float("nan")] * len(members)
    return [
        name if pd.isna(latency) else f"{name}, {latency:.3g} ms"
        for name, latency in zip(settings, latencies, strict=True)
    ]


def _unit(values: NDArray) -> NDArray:
    """From 0, the smallest, to 1; all in the middle where they are equal."""
    return (values - values.min()) / np.ptp(values) if np.ptp(values) else np.full(len(values), 0.5)


def _decade_ticks(axes: Axes, low: float, high: float) -> None:
    axes.set_xticks([tick for tick in log_ticks(low, high) if low <= tick <= high])
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
