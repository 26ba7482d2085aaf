"""Figures of a report: rows of a leaderboard in, matplotlib Figure out; each row keeps one colour in all of them."""

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from pipeline.evaluation.figures.style import COLORS, GREY, Figure, default_style, strip_frame
from pipeline.evaluation.ranking import pareto_front
from pipeline.evaluation.report.leaderboard import LeaderboardRow

Curves = Mapping[str, Sequence[tuple[int, float]]]  # (epoch, accuracy) by run id


def color_of(position: int) -> str:
    """Return the colour of the row at a position of the leaderboard, counted from 0; grey beyond the last colour."""
    return COLORS[position] if position < len(COLORS) else GREY


@default_style()
def validation_curves(rows: Sequence[LeaderboardRow], curves: Curves) -> Figure:
    """Draw validation accuracy over the epochs: a thin line a run, in the colour of its row, dashed if unfinished."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.subplots()
    last_epoch = 1
    for position, row in enumerate(rows):
        drawn = [curves[run.id] for run in row.group.runs if curves.get(run.id)]
        for number, points in enumerate(drawn):
            epochs, values = zip(*points, strict=True)
            last_epoch = max(last_epoch, *epochs)
            axes.plot(
                epochs,
                values,
                color=color_of(position),
                linewidth=1.3,
                alpha=1 if len(drawn) == 1 else 0.75,
                linestyle="-" if row.group.finished else "--",
                marker="o" if len(epochs) <= 30 else "",
                markersize=3,
                label=_legend_label(row) if number == 0 else None,
            )
    axes.set(xlabel="epoch", ylabel="validation accuracy", xlim=(0.5, last_epoch + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    strip_frame(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
    return figure


@default_style()
def accuracy_vs_cost(rows: Sequence[LeaderboardRow], costs: Mapping[str, str], accuracy: str) -> Figure | None:
    """Draw accuracy against each cost that at least two finished rows have, with its Pareto front.

    Args:
        rows: Of the leaderboard.
        costs: Axis labels of the columns `parameters`, `seconds` and `latency_ms`.
        accuracy: Axis label of the accuracy.

    Returns:
        The figure, a panel for each cost; None if there is no such cost.
    """
    finished = [row for row in rows if row.group.finished]
    table = pd.DataFrame(
        {
            "number": [row.rank for row in finished],
            "state": "complete",
            "value": [row.sample.mean for row in finished],
            "parameters": [row.group.mean_metric("parameters") for row in finished],
            "seconds": [row.group.mean_seconds() for row in finished],
            "latency_ms": [row.group.mean_metric("latency_ms") for row in finished],
        }
    )
    shown = [cost for cost in costs if table[cost].notna().sum() > 1]
    if not shown:
        return None
    # A single panel keeps its width beside an empty one.
    columns = max(len(shown), 2)
    figure = Figure(figsize=(4.5 * columns, 3.8), layout="constrained")
    panels = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    for panel, cost in zip(panels, shown, strict=False):
        _draw_cost(panel, table, cost)
        panel.set_xlabel(costs[cost])
        panel.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        strip_frame(panel)
    panels[0].set_ylabel(accuracy)
    return figure


def to_svg(figure: Figure) -> bytes:
    """Return a figure as SVG with its letters as outlines; the same figure gives the same bytes."""
    file = BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    return file.getvalue()


def _legend_label(row: LeaderboardRow) -> str:
    name = row.group.name if len(row.group.name) <= 34 else f"{row.group.name[:16]}…{row.group.name[-16:]}"
    state = "" if row.group.finished else f" ({row.group.state})"
    # A dollar sign would begin a formula.
    return f"{row.rank}  {name}{state}".replace("$", r"\$")


def _draw_cost(panel: Axes, table: pd.DataFrame, cost: str) -> None:
    """Draw accuracy against one cost; the members of the Pareto front are joined and labelled with their rank."""
    for position, (value, x) in enumerate(zip(table["value"], table[cost], strict=True)):
        if np.isfinite(x):
            panel.plot(x, value, "o", color=color_of(position), markersize=6)
    known = table[table[cost].notna()]
    front = pareto_front(known, direction="maximize", cost=cost)
    members = known.set_index("number").loc[front]
    panel.step(members[cost], members["value"], where="post", color=GREY, linewidth=1, zorder=0)
    for rank in front:
        point = members.loc[rank]
        panel.annotate(str(rank), (point[cost], point["value"]), xytext=(5, 4), textcoords="offset points", fontsize=9)
    if known[cost].min() > 0 and known[cost].max() > 5 * known[cost].min():
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        panel.xaxis.set_minor_formatter(NullFormatter())
    else:
        panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
