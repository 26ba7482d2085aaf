"""Pictures of how a study went and what it found: a table of trials in, matplotlib Figure out; no files, no pyplot.

The table is described in `pipeline.study.standings`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from pipeline.study.scale import log_ticks, setting_names
from pipeline.study.standings import Direction, best, finished, pareto_front, sign
from pipeline.study.study_style import (
    MARKS,
    RING,
    canvas,
    none_finished,
    plain_axes,
    states_of,
    value_axis,
    value_ticks,
)
from pipeline.study.trial_name import plain, short_settings, trial_name
from pipeline.style import (
    BLUE,
    DPI,
    QUIET,
    VERMILLION,
    axes_at,
    finite_or_nan,
    fitted,
    heading,
    percent,
    sentence,
    width_of,
)

COSTS = {  # in a title, and along an axis
    "parameters": ("model size", "parameters"),
    "epoch_seconds": ("training time", "seconds an epoch"),
    "latency_ms": ("latency", "milliseconds an image, one at a time"),
}


def optimisation_history(trials: pd.DataFrame, *, metric: str, direction: Direction) -> Figure:
    """Every trial's value in the order of the trials, and the best so far as a line.

    Trials without a value are marked below, in a row for each state.
    """
    if (leader := best(trials, direction=direction)) is None:
        return none_finished(trials)
    values = finite_or_nan(trials["value"].to_numpy(float))
    without = [state for state in states_of(trials) if np.isnan(values[trials["state"] == state]).any()]
    strip = 0.1 + 0.2 * len(without) if without else 0  # inches
    figure = canvas(8.6, 4.95 + strip, "Optimisation history", trials, metric, leader)
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
    figure = canvas(8.6, 5.2, "Intermediate values", trials, metric, leader)
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
                colors=BLUE if complete else QUIET,
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


def value_against_cost(trials: pd.DataFrame, *, metric: str, direction: Direction, cost: str = "parameters") -> Figure:
    """The value of every finished trial against a cost, of which less is better; those that none beats in both named.

    A name has the settings in which the finished trials differ, or the trial's number if they are many; and the latency
    where it was measured.

    Args:
        cost: a column of the table, positive numbers.
    """
    title, label = COSTS.get(cost, (fitted(cost, 2.5, 11), cost))
    if (leader := best(trials, direction=direction)) is None:
        return none_finished(trials)
    done = finished(trials)
    done = done[pd.to_numeric(done[cost]) > 0]
    sizes, values = np.log10(done[cost].to_numpy(float)), done["value"].to_numpy(float)
    front = pareto_front(done, direction=direction, cost=cost)
    if not front:
        return sentence(f"No trial has said its {title}")
    members = [int(np.flatnonzero(done["number"] == number)[0]) for number in front]
    names = _labels(done, members)

    wide, high, size = 6.6, 3.6, 8  # inches, inches, points
    across = _unit(sizes)
    widths = [width_of(name, size) for name in names]
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

    figure = canvas(wide + 1.3, high + 1.75, f"{fitted(metric, 2.5, 11)} against {title}", trials, metric, leader)
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
            axes.plot([10 ** sizes[row], at[0]], [values[row], at[1]], color=QUIET, linewidth=0.6, zorder=2)
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
        return sentence("Not enough trials have finished to say what matters")
    shares = dict(zip(importances, np.nan_to_num(finite_or_nan(list(importances.values()))), strict=True))
    ranked = sorted(shares, key=lambda name: -shares[name])
    names = [fitted(name, 2.4, 10) for name in ranked]
    beside, high = max(width_of(name, 10) for name in names) + 0.25, 0.34 * len(ranked)
    across = max(beside + 4.8, 6.4)
    figure = Figure(figsize=(across, high + 1.3), dpi=DPI)
    heading(figure, f"What mattered for {fitted(metric, 3.5, 11)}", "share of its variation that each setting explains")
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
    names = [name for name in setting_names(done) if len({plain(value) for value in done[f"params.{name}"]}) > 1]
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
