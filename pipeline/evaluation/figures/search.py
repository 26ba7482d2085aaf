"""Figures of a search: a table of trials in, matplotlib Figure out; no files, no pyplot.

The table is described in `pipeline.evaluation.ranking`; `log` names the settings that were searched on a logarithmic
scale. In every figure orange is the best trial, blue are finished trials and grey unfinished ones.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
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
    Figure,
    axes_at,
    default_style,
    draw_title,
    ellipsize,
    finite_or_nan,
    spans_decades,
    strip_frame,
    text_figure,
    text_width,
)
from pipeline.evaluation.ranking import Direction, best, finished, pareto_front, sign
from pipeline.runtime.text import count, format_value, percent, short_settings, trial_name

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
COSTS = {  # column: (name in the title, axis label)
    "parameters": ("model size", "parameters"),
    "epoch_seconds": ("training time", "seconds an epoch"),
    "latency_ms": ("latency", "milliseconds an image, one at a time"),
}
NAMED_BY_SETTINGS = 6  # members of a Pareto front that are labelled with their settings; of more, the trials' numbers


# The figures


@default_style()
def optimization_history(trials: pd.DataFrame, *, metric: str, direction: Direction) -> Figure:
    """Draw the value of each trial by number, and the best value so far as a line.

    Trials without a value are marked below the axes, in a row for each state.
    """
    if (leader := best(trials, direction=direction)) is None:
        return none_finished(trials)
    values = finite_or_nan(trials["value"].to_numpy(float))
    without_value = [state for state in states_of(trials) if np.isnan(values[trials["state"] == state]).any()]
    strip = 0.1 + 0.2 * len(without_value) if without_value else 0  # inches
    figure = new_figure(8.6, 4.95 + strip, "Optimization history", trials, metric, leader)
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
    axes.step(
        [*done["number"], last], [*so_far, so_far[-1]], where="post", color=VERMILLION, zorder=3, label="best so far"
    )
    axes.plot(leader, so_far[-1], **RING, zorder=4)
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
    curves: Mapping[int, Sequence[float]], trials: pd.DataFrame, *, metric: str, direction: Direction
) -> Figure:
    """Draw the metric of every trial over the epochs: the best thick, unfinished ones faint with a mark at their end.

    The figure does not need a finished trial, as long as one trial has completed an epoch.

    Args:
        curves: One value an epoch by trial number, from epoch 1 on; values that are not finite leave a gap.
        trials: The table of trials.
        metric: Name of the metric.
        direction: Whether it is maximized or minimized.
    """
    states = dict(zip(trials["number"], trials["state"], strict=True))
    lines = {number: finite_or_nan(curves[number]) for number in sorted(curves) if number in states}
    lines = {number: values for number, values in lines.items() if np.isfinite(values).any()}
    if not lines:
        return none_finished(trials)
    leader = best(trials, direction=direction)
    figure = new_figure(8.6, 5.2, "Intermediate values", trials, metric, leader)
    axes = axes_at(figure, 0.95, 0.6, 7.35, 3.6)
    for state in dict.fromkeys(["complete", *states_of(trials)]):
        of_state = [values for number, values in lines.items() if states[number] == state and number != leader]
        if of_state:
            _draw_curves(axes, of_state, state, opacity=min(1.0, max(0.25, 15 / len(lines))))
    if leader in lines:
        values = lines[leader]
        dots: dict[str, Any] = {"marker": "o", "markersize": 4} if len(values) <= 30 else {}
        epochs = range(1, len(values) + 1)
        label = f"best: trial {leader}"
        axes.plot(epochs, values, color=VERMILLION, linewidth=2.2, zorder=4, **dots, label=label)
    axes.set(xlabel="epoch", xlim=(0.5, max(map(len, lines.values())) + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    value_axis(axes, np.concatenate(list(lines.values())), metric, direction, 3.6)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=6, frameon=False, borderaxespad=0, fontsize=9)
    return figure


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


@default_style()
def slices(trials: pd.DataFrame, *, metric: str, direction: Direction, log: Collection[str]) -> Figure:
    """Draw the value against each setting, a panel a setting; later trials are darker.

    Values of a setting that several trials share are spread a little. A pruned trial stands at its last value.
    """
    if (leader := best(trials, direction=direction)) is None:
        return none_finished(trials)
    pruned = trials[(trials["state"] == "pruned") & np.isfinite(finite_or_nan(trials["value"].to_numpy(float)))]
    shown = pd.concat([finished(trials), pruned]).sort_values("number")
    complete = (shown["state"] == "complete").to_numpy()
    numbers, values = shown["number"].to_numpy(), shown["value"].to_numpy(float)
    settings = setting_scales(shown, log)
    columns = ceil(sqrt(len(settings))) if len(settings) > 4 else len(settings)
    rows = ceil(len(settings) / columns)
    width, height = max(2.3, 5.2 / columns), 2.1 if columns > 1 else 3.0  # inches of a panel
    figure = new_figure(width * columns + 2.1, (height + 0.65) * rows + 1.0, "Slices", trials, metric, leader)
    norm = Normalize(trials["number"].min(), trials["number"].max())
    for index, setting in enumerate(settings):
        row, column = divmod(index, columns)
        bottom = 0.55 + (rows - 1 - row) * (height + 0.65)
        axes = axes_at(figure, 0.95 + width * column, bottom, width - 0.15, height)
        x = setting.spread(shown["number"])
        axes.plot(x[~complete], values[~complete], linestyle="none", markersize=4, **MARKS["pruned"], label="pruned")
        axes.scatter(
            x[complete],
            values[complete],
            c=numbers[complete],
            cmap=DARKER_IS_BETTER,
            norm=norm,
            s=14 if len(shown) > 60 else 30,
            edgecolors="white",
            linewidths=0.3,
            zorder=3,
        )
        axes.plot(x[numbers == leader], values[numbers == leader], linestyle="none", **RING, zorder=4)
        _setting_axis(axes, setting, width - 0.2)
        value_axis(axes, values, metric, direction, height)
        if column:
            axes.set_ylabel("")
            axes.tick_params(labelleft=False)
    if not complete.all():
        figure.axes[0].legend(
            loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0, fontsize=8, handletextpad=0.2
        )
    if len(trials) > 1:
        key = axes_at(figure, width * columns + 1.05, 0.55, 0.15, min((height + 0.65) * rows - 0.65, 3))
        bar = figure.colorbar(ScalarMappable(norm, DARKER_IS_BETTER), cax=key)
        bar.locator = MaxNLocator(5, integer=True)
        bar.set_label("trial")
    return figure


@default_style()
def heat_map(
    trials: pd.DataFrame, *, metric: str, direction: Direction, rows: str, columns: str, log: Collection[str]
) -> Figure:
    """Draw the best value for each pair of values of two settings, and how many trials have finished there.

    A setting of many values is cut into eight equal ranges, of its logarithm if it is in `log`.

    Raises:
        ValueError: `rows` and `columns` are not two searched settings.
    """
    names = setting_names(trials)
    if rows == columns or not {rows, columns} <= set(names):
        raise ValueError(
            f"rows and columns must be two searched settings of {', '.join(names)}, got {rows!r} and {columns!r}"
        )
    if (leader := best(trials, direction=direction)) is None:
        return none_finished(trials)
    tried = trials[trials["state"] != "duplicate"]
    y, x = (setting_scale(tried, name, log=name in log) for name in (rows, columns))
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
    note = "in a cell: the best value, finished of tried trials; hatched: none finished"
    figure = new_figure(
        max(left + width + 1.3, 6.6), height + labels_height + 1.25, "Heat map", trials, metric, leader, note
    )
    axes = axes_at(figure, left, labels_height, width, height)
    norm = Normalize(np.nanmin(values), np.nanmax(values))
    axes.patch.set(facecolor="white", hatch="////", edgecolor="0.8")
    axes.imshow(values, cmap=value_colors(direction), norm=norm, origin="lower", aspect="auto", interpolation="nearest")
    _write_cells(axes, values, counts, norm, metric, direction, cell_width, cell_height)
    row, column = (int(cell[tried["number"] == leader][0]) for cell in cells)
    frame: dict[str, Any] = {"fill": False, "edgecolor": VERMILLION, "linewidth": 2.5, "zorder": 4, "clip_on": False}
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **frame))
    axes.set_xticks(x.cell_ticks(), x_labels, rotation=90 if upright else 0, fontsize=9, parse_math=False)
    axes.set_yticks(y.cell_ticks(), y_labels, fontsize=9, parse_math=False)
    axes.set_xlabel(ellipsize(columns, max(width, 3), 10), parse_math=False)
    axes.set_ylabel(ellipsize(rows, max(height, 1), 10), parse_math=False)
    axes.tick_params(bottom=not x.discrete, left=not y.discrete)
    axes.set_xticks(np.arange(1, x.cells) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, y.cells) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    color_key(figure, axes, norm, direction, metric, right=0.15)
    return figure


@default_style()
def value_vs_cost(trials: pd.DataFrame, *, metric: str, direction: Direction, cost: str = "parameters") -> Figure:
    """Draw the value of every finished trial against a cost, with the Pareto front and its members' names.

    A name has the settings in which the finished trials differ, or the trial's number if it would be long or the
    members are many; and the latency if it was measured.

    Args:
        trials: The table of trials.
        metric: Name of the value.
        direction: Whether it is maximized or minimized.
        cost: A column of positive numbers, which is minimized.
    """
    title, label = COSTS.get(cost, (ellipsize(cost, 2.5, 11), cost))
    if (leader := best(trials, direction=direction)) is None:
        return none_finished(trials)
    done = finished(trials)
    done = done[pd.to_numeric(done[cost]) > 0]
    front = pareto_front(done, direction=direction, cost=cost)
    if not front:
        return text_figure(f"No trial has logged its {title}")
    costs, values = done[cost].to_numpy(float), done["value"].to_numpy(float)
    members = [int(np.flatnonzero(done["number"] == number)[0]) for number in front]
    names = _member_names(done, members)

    # Names stand left of their points and above them, below if values are minimized: no trial can be there, or it
    # would be the member instead. Each is at least a line beyond the one before.
    size, line_height = 8, 0.15  # points, inches
    width, height = 6.6, 3.6  # inches of the axes
    rise = (height - 0.6) * _unit(sign(direction) * values) + 0.2  # inches; the better, the higher
    lines = line_height * np.arange(len(members))
    middles = np.maximum.accumulate(rise[members] + 0.125 - lines) + lines
    height = max(height, middles[-1] + 0.2)
    left = max(text_width(name, size) for name in names) + 0.2

    figure = new_figure(
        width + 1.3, height + 1.75, f"{ellipsize(metric, 2.5, 11)} against {title}", trials, metric, leader
    )
    axes = axes_at(figure, 0.95, 0.6, width, height)
    axes.set_xscale("log")
    low, high = 10 ** _limits(np.log10(costs), before=left, inches=width - left - 0.3, after=0.3)
    axes.set_xlim(low, high)
    limits = _limits(sign(direction) * values, before=0.2, inches=3.0, after=height - 3.2)
    axes.set_ylim(*sorted(sign(direction) * limits))

    axes.plot(costs, values, "o", color=BLUE, alpha=0.45, markersize=4 if len(done) > 60 else 6, markeredgewidth=0)
    axes.step(costs[members], values[members], where="post", color=VERMILLION, linewidth=1.2, zorder=3)
    axes.plot(costs[members], values[members], "o", color=VERMILLION, markersize=6, zorder=4, label="Pareto front")
    is_leader = (done["number"] == leader).to_numpy()
    axes.plot(costs[is_leader], values[is_leader], linestyle="none", **RING, zorder=5)
    for member, name, middle in zip(members, names, middles, strict=True):
        distance = middle - rise[member]  # inches
        far = distance > 0.2
        axes.annotate(
            name,
            (costs[member], values[member]),
            (-6, 72 * sign(direction) * distance),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=size,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "relpos": (1, 0.5)} if far else None,
            parse_math=False,
        )
    axes.set_xticks([tick for tick in log_ticks(low, high) if low <= tick <= high])
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"{label} (log scale)")
    metric_axis(axes, metric, height)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, borderaxespad=0)
    return figure


@default_style()
def parameter_importances(importances: Mapping[str, float], *, metric: str) -> Figure:
    """Draw how much of the metric's variation each setting explains, the largest share first.

    Args:
        importances: Fractions by setting, as `optuna.importance.get_param_importances` returns them. Empty if fewer
            than two trials have finished: the figure then says so.
        metric: Name of the metric.
    """
    if not importances:
        return text_figure("Not enough trials have finished to estimate importances")
    shares = dict(zip(importances, np.nan_to_num(finite_or_nan(list(importances.values()))), strict=True))
    ranked = sorted(shares, key=lambda name: -shares[name])
    names = [ellipsize(name, 2.4, 10) for name in ranked]
    labels_width, height = max(text_width(name, 10) for name in names) + 0.25, 0.34 * len(ranked)
    width = max(labels_width + 4.8, 6.4)
    figure = Figure(figsize=(width, height + 1.3), dpi=DPI)
    draw_title(
        figure,
        f"Importance of settings for {ellipsize(metric, 3.5, 11)}",
        "share of its variation that each setting explains",
    )
    axes = axes_at(figure, labels_width, 0.5, width - labels_width - 0.75, height)
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


# What the figures share


@default_style()
def none_finished(trials: pd.DataFrame) -> Figure:
    """Return the figure in place of any other until a trial has finished: it counts the trials by state."""
    return text_figure(f"No trial has finished\n{_tally(trials)}" if len(trials) else "No trial has finished")


def states_of(trials: pd.DataFrame) -> list[str]:
    """Return the states that occur, in the order in which they are named and drawn."""
    order = ["complete", *MARKS]
    occurring = set(trials["state"])
    return [state for state in order if state in occurring] + sorted(occurring - set(order))


def _tally(trials: pd.DataFrame) -> str:
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
    draw_title(figure, f"{title}: {count(len(trials), 'trial')}", _tally(trials), summary, note)
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
    if _needs_log_scale(values[np.isfinite(values)], direction):
        axes.set_yscale("log")
    metric_axis(axes, metric, inches)


def metric_axis(axes: Axes, metric: str, inches: float) -> None:
    """Label a y axis of `inches` with the metric's name and ticks."""
    value_ticks(axes.yaxis, metric)
    axes.set_ylabel(ellipsize(metric, inches, 10), parse_math=False)
    strip_frame(axes)


def _needs_log_scale(values: NDArray, direction: Direction) -> bool:
    """Return whether a linear scale would flatten the good values: a loss may, an accuracy near chance does not."""
    return direction == "minimize" and spans_decades(values)


# Parts of single figures


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


def _score_scale(values: NDArray, metric: str, direction: Direction) -> AxisScale:
    """Return the scale of the metric's axis, with the best at the top."""
    if not np.ptp(values):
        label = format_metric(values[0], metric)
        return AxisScale(metric, np.full(len(values), 0.5), [0.5], [label], discrete=True, cells=1)
    log = _needs_log_scale(values, direction)
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


def _setting_axis(axes: Axes, setting: AxisScale, inches: float) -> None:
    """Label an x axis with a setting: words are cut to fit, numbers that would touch the one before are left out."""
    room = max(inches / len(setting.ticks) - 0.08, 0.3) if setting.ticks else inches
    ticks, labels, free_from = [], [], -1.0
    for tick, label in zip(setting.ticks, setting.labels, strict=True):
        label = ellipsize(label, room if setting.discrete else inches, 8)
        half = text_width(label, 8) / 2
        if inches * tick - half > free_from:
            ticks.append(tick)
            labels.append(label)
            free_from = inches * tick + half + 0.05
    axes.set_xticks(ticks, labels, fontsize=8, parse_math=False)
    axes.set_xlim(-0.05, 1.05)
    axes.set_xlabel(ellipsize(setting.name, inches, 10), parse_math=False)


def _cell_values(
    tried: pd.DataFrame, cells: tuple[NDArray, NDArray], shape: tuple[int, int], direction: Direction
) -> tuple[NDArray, NDArray]:
    """Return the best value of each cell of a heat map, and its numbers of trials.

    Args:
        tried: The trials.
        cells: Row and column of each trial's cell, (trials,) each; -1 where it has none.
        shape: Number of rows and columns.
        direction: Whether the value is maximized or minimized.

    Returns:
        (rows, columns) of values, NaN where no trial has finished, and (2, rows, columns) of finished and tried trials.
    """
    known = (cells[0] >= 0) & (cells[1] >= 0)
    done = known & tried["number"].isin(finished(tried)["number"]).to_numpy()
    done_cells = cells[0][done], cells[1][done]
    scores = np.full(shape, -np.inf)
    np.maximum.at(scores, done_cells, sign(direction) * tried["value"].to_numpy(float)[done])
    counts = np.zeros((2, *shape), int)
    np.add.at(counts[0], done_cells, 1)
    np.add.at(counts[1], (cells[0][known], cells[1][known]), 1)
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
) -> None:
    """Write value and finished of tried trials into the cells, of `width` by `height` inches, if it can be read."""
    longest = max(format_metric(value, metric) for value in values[np.isfinite(values)])
    size = min(10, 0.28 * 72 * height, 0.9 * width / text_width(longest, 1))  # points
    # A text takes a millisecond to draw.
    if size < 5 or np.count_nonzero(counts[1]) > 600:
        return
    for row, column in zip(*np.nonzero(counts[1]), strict=True):
        value, (done, tried) = values[row, column], counts[:, row, column]
        if done:
            shade = norm(value) if direction == "maximize" else 1 - norm(value)
            text, color = f"{format_metric(value, metric)}\n{done} of {tried}", "white" if shade > 0.4 else "black"
        else:
            text, color = f"0 of {tried}", GREY
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)


def _member_names(done: pd.DataFrame, members: Sequence[int]) -> list[str]:
    """Return the names of a Pareto front's members, which are positions in the table of finished trials."""
    rows = done.iloc[list(members)]
    varied = [name for name in setting_names(done) if done[f"params.{name}"].map(format_value).nunique() > 1]
    settings = rows[[f"params.{name}" for name in varied or setting_names(done)]]
    settings.columns = settings.columns.str.removeprefix("params.")
    names = [
        short_settings(dict(zip(settings.columns, row, strict=True))) for row in settings.astype(object).to_numpy()
    ]
    if len(names) > NAMED_BY_SETTINGS or max(map(len, names)) > 24:
        names = [trial_name(int(number), {}) for number in rows["number"]]
    if "latency_ms" not in rows:
        return names
    return [
        name if np.isnan(latency) else f"{name}, {latency:.3g} ms"
        for name, latency in zip(names, rows["latency_ms"].to_numpy(float), strict=True)
    ]


def _unit(values: NDArray) -> NDArray:
    """Return the values scaled to 0..1; all in the middle if they are equal."""
    return (values - values.min()) / np.ptp(values) if np.ptp(values) else np.full(len(values), 0.5)


def _limits(values: NDArray, *, before: float, inches: float, after: float) -> NDArray:
    """Return the limits of an axis on which the values span `inches`, with room before and after them.

    Equal values stand in the middle, see `_unit`.
    """
    span = np.ptp(values)
    low, high = values.min(), values.max()
    if not span:
        span = 0.02 * inches
        low, high = low - span / 2, high + span / 2
    return np.array([low - before * span / inches, high + after * span / inches])
