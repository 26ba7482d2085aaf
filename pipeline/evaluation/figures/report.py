"""Standings -> the figures of a report, which share one colour a recipe; no files, no state."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from pipeline.evaluation.figures.style import COLOURS, GREY
from pipeline.evaluation.ranking import pareto_front
from pipeline.evaluation.report.leaderboard import LeaderboardRow

TEXT: dict[Any, Any] = {"font.family": "sans-serif", "font.size": 10, "svg.fonttype": "path", "axes.linewidth": 0.8}

Curves = Mapping[str, Sequence[tuple[int, float]]]  # (epoch, accuracy) by the id of the run


def colour_of(position: int) -> str:
    """The colour of the recipe at a position among those drawn, counted from 0; grey beyond the last."""
    return COLOURS[position] if position < len(COLOURS) else GREY


def validation_curves(found: Sequence[LeaderboardRow], curves: Curves) -> Figure:
    """Validation accuracy over the epochs: a thin line a run, in the colour of its recipe, dashed if not finished."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.subplots()
    longest = 1
    for position, one in enumerate(found):
        drawn = [curves[run.id] for run in one.recipe.runs if curves.get(run.id)]
        for number, points in enumerate(drawn):
            epochs, values = zip(*points, strict=True)
            longest = max(longest, *epochs)
            axes.plot(
                epochs,
                values,
                color=colour_of(position),
                linewidth=1.3,
                alpha=1 if len(drawn) == 1 else 0.75,
                linestyle="-" if one.recipe.finished else "--",
                marker="o" if len(epochs) <= 30 else "",
                markersize=3,
                label=_label(one) if number == 0 else None,
            )
    axes.set(xlabel="epoch", ylabel="validation accuracy", xlim=(0.5, longest + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _plain(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
    return figure


def accuracy_vs_cost(found: Sequence[LeaderboardRow], costs: Mapping[str, str], accuracy: str) -> Figure | None:
    """Accuracy against each cost that at least two recipes have, its Pareto front joined; None where none is such.

    Args:
        costs: what a cost is called on its axis, by its column: parameters, seconds, latency_ms.
        accuracy: what the accuracy is called on its axis.
    """
    done = [one for one in found if one.recipe.finished]
    table = pd.DataFrame(
        {
            "number": [one.place for one in done],
            "state": "complete",
            "value": [one.measured.mean for one in done],
            "parameters": [one.recipe.figure("parameters") for one in done],
            "seconds": [one.recipe.seconds() for one in done],
            "latency_ms": [one.recipe.figure("latency_ms") for one in done],
        }
    )
    shown = [cost for cost in costs if table[cost].notna().sum() > 1]
    if not shown:
        return None
    figure = Figure(figsize=(4.5 * max(len(shown), 2), 3.8), layout="constrained")
    panels = figure.subplots(1, max(len(shown), 2), sharey=True, squeeze=False)[0]
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    for panel, cost in zip(panels, shown, strict=False):
        _accuracy_axes(panel, table, cost)
        panel.set_xlabel(costs[cost])
        _plain(panel)
    panels[0].set_ylabel(accuracy)
    return figure


def to_svg(figure: Figure) -> bytes:
    """A figure as SVG, its letters as outlines, the same bytes for the same figure."""
    file = BytesIO()
    with rc_context(TEXT | {"svg.hashsalt": "report"}):
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    return file.getvalue()


def _label(one: LeaderboardRow) -> str:
    name = one.recipe.name if len(one.recipe.name) <= 34 else f"{one.recipe.name[:16]}…{one.recipe.name[-16:]}"
    label = f"{one.place}  {name}{'' if one.recipe.finished else f' ({one.recipe.state})'}"
    return label.replace("$", r"\$")  # which would begin a formula


def _accuracy_axes(panel: Axes, table: pd.DataFrame, cost: str) -> None:
    known = table[table[cost].notna()]
    for position, (value, x) in enumerate(zip(table["value"], table[cost], strict=True)):
        if np.isfinite(x):
            panel.plot(x, value, "o", color=colour_of(position), markersize=6)
    front = pareto_front(known, direction="maximize", cost=cost)
    members = known.set_index("number").loc[front]
    panel.step(members[cost], members["value"], where="post", color=GREY, linewidth=1, zorder=0)
    for place in front:
        point = members.loc[place]
        panel.annotate(str(place), (point[cost], point["value"]), xytext=(5, 4), textcoords="offset points", fontsize=9)
    if known[cost].min() > 0 and known[cost].max() > 5 * known[cost].min():
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        panel.xaxis.set_minor_formatter(NullFormatter())
    else:
        panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))


def _plain(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
