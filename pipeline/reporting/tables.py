"""Standings -> the tables of a page: who is best and how sure that is, what differs, what each class gets."""

from collections.abc import Mapping, Sequence
from math import isnan

import pandas as pd

from pipeline.reporting.changed import changed_settings
from pipeline.reporting.differences import Difference
from pipeline.reporting.figures import colour_of
from pipeline.reporting.leaderboard import Standing
from pipeline.reporting.markup import Cell, table, text

CLASSES = 20  # rows; of more classes those are shown on which the recipes differ most
WIDE, HIGH, MARGIN = 130, 18, 6  # pixels of an interval's picture


def leaderboard(found: Sequence[Standing], accuracy: str) -> str:
    """The recipes, the best first, with an interval each for how far it is behind."""
    scale = _scale([one.behind for one in found if one.behind])
    columns = {
        "parameters": [_number(one.recipe.figure("parameters"), "{:,.0f}") for one in found],
        "minutes": [_number(one.recipe.seconds() / 60, "{:,.1f}") for one in found],
        "latency, ms": [_number(one.recipe.figure("latency_ms"), "{:,.2f}") for one in found],
        "test set opened": [f"{one.recipe.test_opened:,}" if one.recipe.test_opened else "" for one in found],
    }
    costs = {name: values for name, values in columns.items() if any(values)}
    heads = [Cell("#"), Cell("recipe", "text"), Cell("runs"), Cell(text(accuracy)), Cell("± sd")]
    heads += [Cell("behind<br>the best"), Cell("95 % interval", "text"), Cell("", "text"), Cell("verdict", "text")]
    heads += [Cell(text(name)) for name in costs]
    rows = []
    for position, one in enumerate(found):
        kind = "" if one.recipe.finished else "open"
        cells = [*_who(position, one), Cell(str(len(one.recipe.runs))), Cell(_percent(one.measured.mean))]
        cells += [Cell(_number(100 * one.measured.sd, "{:.2f}")), *_behind(one, scale)]
        cells += [Cell(values[position]) for values in costs.values()]
        rows.append(("best" if one.verdict == "best" else kind, cells))
    return table(heads, rows)


def settings(found: Sequence[Standing]) -> str:
    """The settings in which the recipes differ; empty where there are none."""
    changed = changed_settings([one.recipe for one in found])
    if changed.empty:
        return ""
    rows = [
        ("", [*_who(position, one), *(Cell(text(value)) for value in values)])
        for position, (one, values) in enumerate(zip(found, changed.to_numpy().tolist(), strict=True))
    ]
    return table([Cell("#"), Cell("recipe", "text"), *(Cell(text(name)) for name in changed)], rows)


def classes(found: Sequence[Standing], recalls: "Mapping[str, pd.Series[float]]") -> tuple[str, int]:
    """Share of each class's test images that were recognized, a column a recipe, mean over its runs.

    Returns:
        The table, and how many classes it leaves out; empty text where no recipe has such figures.
    """
    told = [(position, one, _mean_recall(one, recalls)) for position, one in enumerate(found)]
    columns = {position: recall for position, _, recall in told if recall is not None}
    if not columns:
        return "", 0
    shares = pd.DataFrame(columns)  # (classes, recipes)
    shown = shares
    if len(shares) > CLASSES:
        most = (shares.max(axis=1) - shares.min(axis=1)).nlargest(CLASSES).index
        shown = shares[shares.index.isin(most)]
    heads = [Cell("class", "text")]
    heads += [Cell(f"{_dot(position)}{one.place}") for position, one, _ in told if position in columns]
    low = float(shares.min().min())
    rows = [
        ("", [Cell(text(name), "text"), *(_shaded(share, low, max(values)) for share in values)])
        for name, values in zip(shown.index, shown.to_numpy().tolist(), strict=True)
    ]
    return table(heads, rows), len(shares) - len(shown)


def _mean_recall(one: Standing, recalls: "Mapping[str, pd.Series[float]]") -> "pd.Series[float] | None":
    known = [recalls[run.id] for run in one.recipe.runs if run.id in recalls]
    return pd.concat(known, axis=1).mean(axis=1) if known else None


def _shaded(share: float, low: float, best: float) -> Cell:
    """A share on blue, the darker the higher; the best of its row in bold."""
    if isnan(share):
        return Cell("")
    depth = 0.38 * (share - low) / max(1 - low, 1e-9)
    bold = "font-weight:600;" if share == best else ""
    return Cell(_percent(share), style=f"{bold}background:rgba(0,114,178,{depth:.3f})")


def _who(position: int, one: Standing) -> tuple[Cell, Cell]:
    return Cell(str(one.place)), Cell(_dot(position) + text(one.recipe.name), "text name")


def _dot(position: int) -> str:
    return f'<span class="dot" style="background:{_css(colour_of(position))}"></span>'


def _css(colour: str) -> str:
    """A colour of matplotlib's as one of CSS: its greys are numbers as text."""
    return colour if colour.startswith("#") else f"hsl(0 0% {100 * float(colour):.0f}%)"


def _scale(known: Sequence[Difference]) -> tuple[float, float]:
    """The lowest and the highest of what is drawn, zero among it."""
    drawn = [limit for one in known for limit in (one.low, one.mean, one.high) if not isnan(limit)]
    return min([0.0, *drawn]), max([0.0, *drawn])


def _behind(one: Standing, scale: tuple[float, float]) -> list[Cell]:
    if one.behind is None:
        return [Cell(""), Cell("", "text"), Cell(""), Cell(text(one.verdict), "text verdict")]
    low, mean, high = one.behind.low, one.behind.mean, one.behind.high
    limits = f"{100 * low:+.2f} to {100 * high:+.2f}" if one.behind.known else ""
    kind = "text verdict worse" if one.verdict == "worse" else "text verdict"
    over = f'<br><span class="over">{text(one.behind.over)}</span>' if one.behind.over else ""
    return [
        Cell(f"{100 * mean:.2f}"),
        Cell(limits, "text"),
        Cell(_interval(low, mean, high, scale)),
        Cell(text(one.verdict) + over, kind),
    ]


def _interval(low: float, mean: float, high: float, scale: tuple[float, float]) -> str:
    """A dot with whiskers on a scale that all rows share; the grey line is no difference."""

    def across(value: float) -> float:
        return MARGIN + (WIDE - 2 * MARGIN) * (value - scale[0]) / max(scale[1] - scale[0], 1e-9)

    middle = HIGH / 2
    whisker = (
        f'<line x1="{across(low):.1f}" x2="{across(high):.1f}" y1="{middle}" y2="{middle}" stroke="#1c1c1a"/>'
        if not isnan(low)
        else ""
    )
    return (
        f'<svg class="interval" width="{WIDE}" height="{HIGH}" role="img" aria-label="interval">'
        f'<line x1="{across(0):.1f}" x2="{across(0):.1f}" y1="0" y2="{HIGH}" stroke="#b9b7b0"/>{whisker}'
        f'<circle cx="{across(mean):.1f}" cy="{middle}" r="3.5" fill="#1c1c1a"/></svg>'
    )


def _percent(fraction: float) -> str:
    return "" if isnan(fraction) else f"{100 * fraction:.2f} %"


def _number(value: float, shape: str) -> str:
    return "" if isnan(value) else shape.format(value)
