"""Sections of compared recipes -> one page of HTML that needs nothing beside it."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from math import isnan
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from pipeline.evaluation.figures import report
from pipeline.evaluation.figures.report import colour_of
from pipeline.evaluation.figures.style import COLOURS
from pipeline.evaluation.report.groups import Metric, differing_settings
from pipeline.evaluation.report.leaderboard import LeaderboardRow
from pipeline.evaluation.significance import Difference
from pipeline.runtime.text import count


class Cell(NamedTuple):
    """A cell of a table: HTML, and how it is set."""

    html: str
    kind: str = ""  # CSS classes
    style: str = ""


def text(value: object) -> str:
    """What may stand anywhere in a page, whatever characters it holds."""
    return escape(" ".join(str(value).split()))


def table(heads: Sequence[Cell], rows: Iterable[tuple[str, Sequence[Cell]]]) -> str:
    """A table that scrolls sideways where it is wide; a row is its CSS class and its cells."""
    head = "".join(_cell("th", cell) for cell in heads)
    body = "".join(
        f"<tr{_attribute('class', kind)}>{''.join(_cell('td', cell) for cell in cells)}</tr>\n" for kind, cells in rows
    )
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n'


def picture(content: bytes, kind: str, *, caption: str) -> str:
    """A picture that the page holds itself; `kind` is svg+xml or png, the caption is plain text."""
    data = base64.b64encode(content).decode("ascii")
    alternative = text(caption.split(". ")[0])
    return (
        f'<figure><img alt="{alternative}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{text(caption)}</figcaption></figure>\n"
    )


def definitions(meanings: Mapping[str, str]) -> str:
    """A list of words and what they mean, both plain text."""
    entries = "".join(f"<dt>{text(word)}</dt><dd>{text(meaning)}</dd>\n" for word, meaning in meanings.items())
    return f"<dl>\n{entries}</dl>\n"


def _cell(tag: str, cell: Cell) -> str:
    return f"<{tag}{_attribute('class', cell.kind)}{_attribute('style', cell.style)}>{cell.html}</{tag}>"


def _attribute(name: str, value: str) -> str:
    return f' {name}="{value}"' if value else ""


CLASSES = 20  # rows; of more classes those are shown on which the recipes differ most
WIDE, HIGH, MARGIN = 130, 18, 6  # pixels of an interval's picture


def leaderboard(found: Sequence[LeaderboardRow], accuracy: str) -> str:
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


def settings(found: Sequence[LeaderboardRow]) -> str:
    """The settings in which the recipes differ; empty where there are none."""
    changed = differing_settings([one.recipe for one in found])
    if changed.empty:
        return ""
    rows = [
        ("", [*_who(position, one), *(Cell(text(value)) for value in values)])
        for position, (one, values) in enumerate(zip(found, changed.to_numpy().tolist(), strict=True))
    ]
    return table([Cell("#"), Cell("recipe", "text"), *(Cell(text(name)) for name in changed)], rows)


def classes(found: Sequence[LeaderboardRow], recalls: "Mapping[str, pd.Series[float]]") -> tuple[str, int]:
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


def _mean_recall(one: LeaderboardRow, recalls: "Mapping[str, pd.Series[float]]") -> "pd.Series[float] | None":
    known = [recalls[run.id] for run in one.recipe.runs if run.id in recalls]
    return pd.concat(known, axis=1).mean(axis=1) if known else None


def _shaded(share: float, low: float, best: float) -> Cell:
    """A share on blue, the darker the higher; the best of its row in bold."""
    if isnan(share):
        return Cell("")
    depth = 0.38 * (share - low) / max(1 - low, 1e-9)
    bold = "font-weight:600;" if share == best else ""
    return Cell(_percent(share), style=f"{bold}background:rgba(0,114,178,{depth:.3f})")


def _who(position: int, one: LeaderboardRow) -> tuple[Cell, Cell]:
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


def _behind(one: LeaderboardRow, scale: tuple[float, float]) -> list[Cell]:
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


ACCURACY = {"test_accuracy": "test accuracy", "best_val_accuracy": "best validation accuracy"}
COSTS = {
    "parameters": "parameters",
    "seconds": "seconds from start to end of a run",
    "latency_ms": "latency of one image, ms",
}
WORDS = {
    "recipe": "all runs of equal settings apart from the seed, on the same data",
    "test accuracy": "share of test images recognized with the weights of the best validation epoch; mean over runs",
    "best validation accuracy": "the highest of a run's epochs, which flatters runs of many epochs; mean over runs",
    "sd": "sample standard deviation over the runs, in percentage points; none of one run",
    "behind": "the best recipe's mean less this one's, in percentage points; the best is the row of the highest mean",
    "95 % interval": (
        "of that difference. Where all runs of both recipes were tested on the same images, its variance is that of "
        "the difference image by image (paired, after McNemar); to it, or alone where the images differ, comes the "
        "variance over seeds of each recipe (Welch's t, degrees of freedom after Satterthwaite). A recipe of one run "
        "borrows the variance of the recipes that have several. With one seed each the interval knows nothing of what "
        "seeds change"
    ),
    "within noise": "the interval holds zero: these runs do not tell the two recipes apart",
    "worse": "the interval lies on one side of zero. Each is one of 95 % by itself: of twenty rows one errs by chance",
    "not known": "too few runs for any interval: train each recipe with several seeds",
    "minutes": "wall time from start to end of a run, whatever else the machine did",
    "test set opened": (
        "how often these runs' models have been shown the test images: once in each training that was tested, and once "
        "in each evaluation since. Whoever chooses by what came of it has no untouched images left to measure with"
    ),
    "latency": (
        "of one image at a time; measured of the best trials of a search, and of runs whose model was registered"
    ),
}

AGAINST_THE_BEST = {
    "within noise": "within noise of it",
    "worse": "worse by more than noise",
    "not known": "of too few runs to tell",
}


@dataclass(frozen=True)
class Section:
    """What is shown of the recipes on one data set."""

    data: str
    fingerprint: str
    found: Sequence[LeaderboardRow]  # the best, as many as there is room for
    others: int  # recipes beyond these
    test_opened: int  # how often the test images have been looked at, by all runs
    curves: report.Curves = field(default_factory=dict)
    recalls: "Mapping[str, pd.Series[float]]" = field(default_factory=dict)
    kernels: Sequence[tuple[LeaderboardRow, bytes]] = ()  # PNG of two recipes' filters


def page(
    title: str, sections: Sequence[Section], metric: Metric, *, notes: Sequence[str], facts: Mapping[str, str]
) -> str:
    """The whole page.

    Args:
        notes: what a reader must know of the choice of runs, a sentence each.
        facts: how the page was made, by what is told.
    """
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    many = len(sections) > 1
    warned = [f'<p class="warn">{text(_several(sections))}</p>'] * many
    warned += [f'<p class="warn">{text(note)}</p>' for note in notes]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # a page that anybody may have named things in loads nothing and runs nothing
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
        "'unsafe-inline'\">\n"
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body><main>\n"
        f'<h1>{text(title)}</h1>\n<p class="quiet">{text(_counted(sections, metric))}</p>\n'
        + "\n".join(warned)
        + "".join(_section(section, metric, headed=many) for section in sections)
        + f"<h2>How to read this</h2>\n{definitions(WORDS)}"
        + f"<h2>How it was made</h2>\n{definitions(facts)}</main></body>\n</html>\n"
    )


def answer(section: Section, metric: Metric) -> str:
    """The first sentences: which recipe is best, and what may not be told from it."""
    done = [one for one in section.found if one.recipe.finished]
    if not done:
        return "No run has finished, so there is nothing to conclude yet."
    best = done[0]
    spread = f" ± {100 * best.measured.sd:.2f}" if len(best.recipe.runs) > 1 else ""
    runs = f"{len(best.recipe.runs)} runs" if len(best.recipe.runs) > 1 else "one run"
    said = f"{best.recipe.name} has the highest {ACCURACY[metric]}: {100 * best.measured.mean:.2f} %{spread} of {runs}."
    verdicts = [one.verdict for one in done[1:]]
    counted = [(verdicts.count(verdict), phrase) for verdict, phrase in AGAINST_THE_BEST.items()]
    others = ", ".join(f"{number} {'is' if number == 1 else 'are'} {phrase}" for number, phrase in counted if number)
    if not others:
        return f"{said} There is no other recipe to compare it with."
    if len(verdicts) == 1:
        return f"{said} The other {others.removeprefix('1 ')}."
    which = f"the next {len(verdicts)}" if section.others else "the others"
    return f"{said} Of {which}, {others}."


def opened(section: Section) -> str:
    """How often the test images of a data set have been looked at, in one sentence."""
    if not section.test_opened:
        return f"None of these runs has opened the test images of {section.data}."
    times = count(section.test_opened, "time")
    return f"These runs and their evaluations have opened the test images of {section.data} {times}."


def _section(section: Section, metric: Metric, *, headed: bool) -> str:
    found, accuracy = section.found, ACCURACY[metric]
    head = f"<h2>Data: {text(section.data)} {text(section.fingerprint)}</h2>\n" if headed else ""
    more = f'<p class="note">{section.others:,} more recipes are in leaderboard.csv.</p>\n' if section.others else ""
    return (
        f'{head}<div class="answer"><p>{text(answer(section, metric))}</p></div>\n'
        f"<h3>Leaderboard</h3>\n{leaderboard(found, accuracy)}{more}"
        f'<p class="note">{text(opened(section))}</p>\n'
        f"{_curves(section)}{_settings(section)}{_costs(section, accuracy)}{_classes(section)}{_kernels(section)}"
    )


def _curves(section: Section) -> str:
    drawn = [one for one in section.found[: len(COLOURS)] if any(section.curves.get(r.id) for r in one.recipe.runs)]
    if not drawn:
        return ""
    first = section.found[: len(COLOURS)]  # so that each keeps its colour
    caption = f"Validation accuracy of {count(len(drawn), 'recipe')}. A line a run; dashed: not finished."
    content = report.to_svg(report.validation_curves(first, section.curves))
    return f"<h3>Curves</h3>\n{picture(content, 'svg+xml', caption=caption)}"


def _settings(section: Section) -> str:
    if len(section.found) < 2:
        return ""
    same = '<p class="note">These recipes differ in no setting.</p>\n'
    return f"<h3>What differs</h3>\n{settings(section.found) or same}"


def _costs(section: Section, accuracy: str) -> str:
    figure = report.accuracy_vs_cost(section.found, COSTS, accuracy)
    if figure is None:
        return ""
    caption = (
        f"What {accuracy} costs. The line joins the recipes that no other one beats in both (the Pareto front), "
        "which bear their number."
    )
    return f"<h3>Accuracy and its price</h3>\n{picture(report.to_svg(figure), 'svg+xml', caption=caption)}"


def _classes(section: Section) -> str:
    table, hidden = classes(section.found[: len(COLOURS)], section.recalls)
    if not table:
        return ""
    note = f"The {CLASSES} classes on which they differ most; {hidden:,} more." if hidden else ""
    what = "Share of the test images of each class that were recognized, mean over the runs; bold: the best of the row."
    return f'<h3>Class by class</h3>\n{table}<p class="note">{what} {note}</p>\n'


def _kernels(section: Section) -> str:
    if len(section.kernels) < 2:
        return ""
    pictures = "".join(
        picture(png, "png", caption=f"{one.place} {one.recipe.name}: depthwise kernels of the middle block.")
        for one, png in section.kernels
    )
    return f'<h3>Filters</h3>\n<div class="pair">{pictures}</div>\n'


def _counted(sections: Sequence[Section], metric: Metric) -> str:
    recipes = sum(len(section.found) + section.others for section in sections)
    runs = sum(len(one.recipe.runs) for section in sections for one in section.found)
    more = " and more" if any(section.others for section in sections) else ""
    return f"{count(recipes, 'recipe')}, {count(runs, 'run')}{more}, ranked by {ACCURACY[metric]}"


def _several(sections: Sequence[Section]) -> str:
    names = "; ".join(f"{section.data} {section.fingerprint}".strip() for section in sections)
    return (
        f"These runs saw {len(sections)} different data sets ({names}). Accuracies on different data are no "
        "comparison: each data set has a leaderboard of its own."
    )
