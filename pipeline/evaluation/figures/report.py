"""Plots of a report: rows of a leaderboard in, SVG for the report's page out; each row keeps one colour in all of them.

The page's stylesheet gives the colours, so that they suit a light and a dark page, and texts stay texts.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from io import BytesIO
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from pipeline.config.monitor import DIRECTIONS, Monitor, ResultMetric, metric_words, monitor_of, sign
from pipeline.evaluation.figures.style import COLORS, default_style, strip_frame
from pipeline.evaluation.ranking import pareto_front
from pipeline.evaluation.report.leaderboard import LeaderboardRow
from pipeline.runtime.text import format_metric, is_share

Curves = Mapping[str, Sequence[tuple[int, float]]]  # (epoch, value) by run id

INK, QUIET, LINE = "#1c1c1a", "#737373", "#e6e6e6"  # of texts and axes, of what should not draw the eye, of grids
# by colour of a figure, the variable of the stylesheet that takes its place
VARIABLES = {color.lower(): f"var(--row-{position})" for position, color in enumerate(COLORS)} | {
    INK: "var(--ink)",
    QUIET: "var(--quiet)",
    LINE: "var(--line)",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
MARKED_EPOCHS = 30  # epochs of a curve at most whose points are drawn
LONG_DECIMAL = re.compile(r"-?\d+\.\d{3,}")
HEX_COLOR = re.compile(r"#[0-9a-f]{6}")
FONT = re.compile(r"font-family:[^;]*;\s*")


class Mark(NamedTuple):
    """What the page tells of a line or a point of a plot."""

    position: int  # of the row on the leaderboard, from 0
    text: str
    points: Sequence[str] = ()  # a text for each point of a line that shows them


class Plot(NamedTuple):
    """A figure and its marks by the `gid` of their artists."""

    figure: Figure
    marks: Mapping[str, Mark]


def row_color(position: int) -> str:
    """Return the colour in CSS of the row at a position of the leaderboard, from 0; grey beyond the last colour."""
    return VARIABLES[_color(position)]


@contextmanager
def page_style() -> Iterator[None]:
    """Context manager, also a decorator: use the style of all figures with colours that `to_svg` knows."""
    with default_style(), rc_context(STYLE):
        yield


@page_style()
def validation_curves(rows: Sequence[LeaderboardRow], curves: Curves, metric: Monitor) -> Plot:
    """Draw a metric of validation over the epochs: a thin line a run, in its row's colour, dashed if unfinished."""
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.subplots()
    marks = {}
    last_epoch = 1
    for position, row in enumerate(rows):
        drawn = [(run, points) for run in row.group.runs if (points := _finite(curves.get(run.id, ())))]
        for run, points in drawn:
            epochs, values = zip(*points, strict=True)
            last_epoch = max(last_epoch, *epochs)
            shows_points = len(epochs) <= MARKED_EPOCHS
            gid = f"curve-{position}-{run.id}"
            axes.plot(
                epochs,
                values,
                gid=gid,
                color=_color(position),
                linewidth=1.3,
                alpha=1 if len(drawn) == 1 else 0.75,
                linestyle="-" if row.group.finished else "--",
                marker="o" if shows_points else "",
                markersize=3,
            )
            name = _label(row) + (f", seed {run.params['seed']}" if run.params.get("seed") else "")
            best = max(points, key=lambda point: sign(metric) * point[1])
            last = f"last {format_metric(metric, values[-1])} at epoch {epochs[-1]}"
            text = f"{name}: best {format_metric(metric, best[1])} at epoch {best[0]}, {last}"
            each = [f"{name}: {format_metric(metric, value)} at epoch {epoch}" for epoch, value in points]
            each = each if shows_points else []
            marks[gid] = Mark(position, text, each)
    axes.set(xlabel="epoch", ylabel=metric_words(metric), xlim=(0.5, last_epoch + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _finish(axes, metric)
    return Plot(figure, marks)


@page_style()
def metric_vs_cost(rows: Sequence[LeaderboardRow], costs: Mapping[str, str], metric: ResultMetric) -> dict[str, Plot]:
    """Draw the metric of a ranking against each cost that at least two ranked rows have, with its Pareto front.

    Args:
        rows: Of the leaderboard.
        costs: Axis labels of the columns `parameters`, `seconds` and `latency_ms`.
        metric: The metric.

    Returns:
        A plot for each of these costs.
    """
    ranked = [row for row in rows if row.is_ranked]
    table = pd.DataFrame(
        {
            "number": [row.rank for row in ranked],
            "label": [_label(row) for row in ranked],
            "state": "complete",
            "value": [row.sample.mean for row in ranked],
            "parameters": [row.group.mean_metric("parameters") for row in ranked],
            "seconds": [row.group.mean_seconds() for row in ranked],
            "latency_ms": [row.group.mean_metric("latency_ms") for row in ranked],
        }
    )
    return {
        cost: _draw_cost(table, cost, xlabel=label, metric=metric)
        for cost, label in costs.items()
        if table[cost].notna().sum() > 1
    }


@page_style()
def to_svg(plot: Plot, *, name: str, alt: str) -> str:
    """Return a plot as an SVG element for a page of HTML, in which a `title` tells of each mark.

    The stylesheet has the colours of `VARIABLES`. Lines and points of a row have the class `series` and its position
    as `data-row`. The same plot gives the same text.

    Args:
        plot: The plot.
        name: What tells it from the other plots of the page.
        alt: What it shows, for those who do not see it.
    """
    file = BytesIO()
    with rc_context({"svg.hashsalt": name}):
        plot.figure.savefig(file, format="svg", metadata={"Date": None})
    svg = ElementTree.fromstring(file.getvalue())  # noqa: S314 - Matplotlib has written it and escaped all texts
    for element in svg.iter():
        element.tag = element.tag.rpartition("}")[2]
        _adapt(element)
    for group in svg.iter("g"):
        mark = plot.marks.get(group.attrib.pop("id", ""))
        if mark:
            _tell(group, mark)
    # its rules would hold for the whole page
    for child in [*svg.findall("metadata"), *svg.findall("defs[style]")]:
        svg.remove(child)
    for size in ("width", "height", "version"):
        svg.attrib.pop(size, None)
    svg.attrib |= {"class": "plot", "role": "img", "aria-label": alt}
    return ElementTree.tostring(svg, encoding="unicode")


def _adapt(element: Element) -> None:
    """Give an SVG element the page's colours and font, name links as HTML does, and round its coordinates."""
    if not (element.text or "").strip():
        element.text = None
    element.tail = None
    for name, value in list(element.attrib.items()):
        if name.endswith("}href"):
            element.set("href", element.attrib.pop(name))
        elif name == "style":
            element.set(name, HEX_COLOR.sub(lambda color: VARIABLES[color[0]], FONT.sub("", value)))
        elif name in {"d", "x", "y", "transform"}:
            element.set(name, LONG_DECIMAL.sub(lambda number: f"{float(number[0]):.2f}", value))


def _tell(group: Element, mark: Mark) -> None:
    """Put the texts of a mark into its group, and widen what the pointer finds."""
    group.set("class", "series")
    group.set("data-row", str(mark.position))
    line = group.find("path")
    if line is not None:
        reach = deepcopy(line)
        reach.attrib.pop("style", None)
        reach.set("class", "reach")
        group.insert(0, reach)
    for point, text in zip(group.iter("use"), mark.points, strict=False):
        ElementTree.SubElement(point, "title").text = text
    title = Element("title")
    title.text = mark.text
    group.insert(0, title)


def _color(position: int) -> str:
    return COLORS[position].lower() if position < len(COLORS) else QUIET


def _label(row: LeaderboardRow) -> str:
    return f"{row.rank} {row.group.name}" + ("" if row.group.finished else f" ({row.group.state})")


def _finite(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(epoch, value) for epoch, value in points if np.isfinite(value)]


def _draw_cost(table: pd.DataFrame, cost: str, *, xlabel: str, metric: ResultMetric) -> Plot:
    """Draw a metric against one cost; the members of the Pareto front are joined and labelled with their rank."""
    figure = Figure(figsize=(3.8, 3.1), layout="constrained")
    axes = figure.subplots()
    marks = {}
    for position, (label, value, x) in enumerate(zip(table["label"], table["value"], table[cost], strict=True)):
        if np.isfinite(x):
            gid = f"{cost}-{position}"
            axes.plot(x, value, "o", color=_color(position), markersize=6, gid=gid)
            text = f"{label}: {format_metric(metric, value)}, {xlabel} {x:,.6g}"
            marks[gid] = Mark(position, text, [text])
    known = table[table[cost].notna()]
    front = pareto_front(known, direction=DIRECTIONS[monitor_of(metric)], cost=cost)
    members = known.set_index("number").loc[front]
    axes.step(members[cost], members["value"], where="post", color=QUIET, linewidth=1, zorder=0)
    for rank in front:
        point = members.loc[rank]
        axes.annotate(str(rank), (point[cost], point["value"]), xytext=(5, 4), textcoords="offset points", fontsize=9)
    axes.set(xlabel=xlabel, ylabel=metric_words(metric))
    if known[cost].min() > 0 and known[cost].max() > 5 * known[cost].min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    _finish(axes, metric)
    return Plot(figure, marks)


def _finish(axes: Axes, metric: str) -> None:
    """Write accuracies and F1 as per cent, and draw a faint grid and no frame."""
    if is_share(metric):
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    strip_frame(axes)
    axes.grid(axis="y", color=LINE)
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)
