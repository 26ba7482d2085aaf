"""The report page: sections of compared groups of runs -> one HTML page, by way of the template report.html.j2."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import ClassVar, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.evaluation.figures.report import Curves, accuracy_vs_cost, color_of, to_svg, validation_curves
from pipeline.evaluation.figures.style import COLORS
from pipeline.evaluation.report.groups import Metric, differing_settings
from pipeline.evaluation.report.leaderboard import LeaderboardRow
from pipeline.evaluation.significance import Difference
from pipeline.runtime.text import count

FOLDER = Path(__file__).parent  # of the template and the stylesheet
CLASSES = 20  # rows of the table of classes
ACCURACY = {"test_accuracy": "test accuracy", "best_val_accuracy": "best validation accuracy"}
COSTS = {
    "parameters": "parameters",
    "seconds": "seconds from start to end of a run",
    "latency_ms": "latency of one image, ms",
}
COMPARED_WITH_BEST = {
    "within noise": "within noise of it",
    "worse": "worse by more than noise",
    "not known": "of too few runs to tell",
}


@dataclass(frozen=True)
class Section:
    """The groups of runs on one data set, and what is drawn of them."""

    data: str
    fingerprint: str
    rows: Sequence[LeaderboardRow]  # the best, as many as the page has room for
    others: int  # number of groups beyond these
    test_set_accesses: int  # by all runs on these data, also by those that are not compared
    curves: Curves = field(default_factory=dict)
    recalls: "Mapping[str, pd.Series[float]]" = field(default_factory=dict)  # of each class, by run id
    kernels: Sequence[tuple[LeaderboardRow, bytes]] = ()  # PNG of two groups' filters


def render_page(
    title: str, sections: Sequence[Section], metric: Metric, *, notes: Sequence[str], facts: Mapping[str, str]
) -> str:
    """Return the whole page as HTML.

    Args:
        title: Heading of the page.
        sections: One for each data set.
        metric: What the groups are ranked by.
        notes: What a reader must know about the choice of runs, a sentence each.
        facts: How the page was made, by name.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        # Run names, class names and settings are anybody's text.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        subtitle=_subtitle(sections, metric),
        warnings=[*([_different_data(sections)] if len(sections) > 1 else []), *notes],
        sections=[_view_section(section, metric) for section in sections],
        accuracy=ACCURACY[metric],
        facts=facts,
        stylesheet=(FOLDER / "report.css").read_text(encoding="utf-8"),
    )


def answer(section: Section, metric: Metric) -> str:
    """Return in a few sentences which configuration is best, and how the others compare with it."""
    finished = [row for row in section.rows if row.group.finished]
    if not finished:
        return "No run has finished, so there is nothing to conclude yet."
    best, *others = finished
    runs, spread = "one run", ""
    if len(best.group.runs) > 1:
        runs, spread = f"{len(best.group.runs)} runs", f" ± {100 * best.sample.sd:.2f}"
    mean = f"{100 * best.sample.mean:.2f} %{spread}"
    sentence = f"{best.group.name} has the highest {ACCURACY[metric]}: {mean} of {runs}."
    verdicts = [row.verdict for row in others]
    counts = {phrase: verdicts.count(verdict) for verdict, phrase in COMPARED_WITH_BEST.items() if verdict in verdicts}
    if not counts:
        return f"{sentence} There is no other configuration to compare it with."
    if len(verdicts) == 1:
        return f"{sentence} The other is {next(iter(counts))}."
    which = f"the next {len(verdicts)}" if section.others else "the others"
    compared = ", ".join(f"{number} {'is' if number == 1 else 'are'} {phrase}" for phrase, number in counts.items())
    return f"{sentence} Of {which}, {compared}."


def describe_test_set_accesses(section: Section) -> str:
    """Return in one sentence how often models were evaluated on the test set of these data."""
    if not section.test_set_accesses:
        return f"No model of these runs was evaluated on the test set of {section.data}."
    times = count(section.test_set_accesses, "time")
    return f"Models of these runs were evaluated on the test set of {section.data} {times}."


# The view: what the template writes, as text, colours and coordinates


class Picture(NamedTuple):
    """A picture that is part of the page."""

    data_uri: str
    caption: str

    @property
    def alt(self) -> str:
        """Return the first sentence of the caption."""
        return self.caption.split(". ")[0]


@dataclass(frozen=True)
class IntervalBar:
    """The x coordinates of an interval's picture, in pixels; `low` and `high` are empty if there is no interval."""

    WIDTH: ClassVar[int] = 130
    HEIGHT: ClassVar[int] = 18
    MARGIN: ClassVar[int] = 6

    zero: str
    mean: str
    low: str
    high: str

    @property
    def middle(self) -> float:
        """Return the y coordinate of the mean."""
        return self.HEIGHT / 2


class RowView(NamedTuple):
    """A row of the leaderboard and of the table of settings; cells without a value are empty."""

    rank: int
    name: str
    color: str
    css_class: str
    runs: int
    accuracy: str
    sd: str
    gap: str
    interval: str
    bar: IntervalBar | None
    over: str  # what the interval was taken over
    verdict: str
    costs: list[str]  # in the order of `SectionView.cost_names`
    settings: list[str]  # in the order of `SectionView.setting_names`


class ShadedCell(NamedTuple):
    """A share on blue, the darker the higher; the best of its row in bold."""

    text: str
    style: str


class ClassTable(NamedTuple):
    """Recall of each class, a row a class and a column a group."""

    columns: list[RowView]
    rows: list[tuple[str, list[ShadedCell]]]
    hidden: int  # number of classes that are left out


class SectionView(NamedTuple):
    """All that the template writes of one section."""

    data: str
    fingerprint: str
    answer: str
    test_set_accesses: str
    rows: list[RowView]
    others: int
    cost_names: list[str]
    setting_names: list[str]
    curves: Picture | None
    costs: Picture | None
    classes: ClassTable | None
    kernels: list[Picture]


def _view_section(section: Section, metric: Metric) -> SectionView:
    settings = differing_settings([row.group for row in section.rows])
    costs = _cost_columns(section.rows)
    rows = _view_rows(section.rows, costs, settings.to_numpy().tolist())
    return SectionView(
        data=section.data,
        fingerprint=section.fingerprint,
        answer=answer(section, metric),
        test_set_accesses=describe_test_set_accesses(section),
        rows=rows,
        others=section.others,
        cost_names=list(costs),
        setting_names=settings.columns.tolist(),
        curves=_curves_picture(section),
        costs=_costs_picture(section, metric),
        classes=_class_table(section, rows),
        kernels=[
            _picture(png, "png", f"{row.rank} {row.group.name}: depthwise kernels of the middle block.")
            for row, png in section.kernels
        ],
    )


def _view_rows(
    rows: Sequence[LeaderboardRow], costs: Mapping[str, Sequence[str]], settings: Sequence[Sequence[str]]
) -> list[RowView]:
    gaps = [row.gap for row in rows if row.gap]
    limits = [limit for gap in gaps for limit in (gap.low, gap.mean, gap.high) if not isnan(limit)]
    scale = min([0.0, *limits]), max([0.0, *limits])
    views = []
    for position, row in enumerate(rows):
        gap = row.gap
        interval = f"{100 * gap.low:+.2f} to {100 * gap.high:+.2f}" if gap and gap.known else ""
        unfinished = "" if row.group.finished else "unfinished"
        views.append(
            RowView(
                rank=row.rank,
                name=row.group.name,
                color=_css_color(color_of(position)),
                css_class="best" if row.verdict == "best" else unfinished,
                runs=len(row.group.runs),
                accuracy=_number(100 * row.sample.mean, "{:.2f} %"),
                sd=_number(100 * row.sample.sd, "{:.2f}"),
                gap=f"{100 * gap.mean:.2f}" if gap else "",
                interval=interval,
                bar=_interval_bar(gap, scale) if gap else None,
                over=gap.over if gap else "",
                verdict=row.verdict,
                costs=[column[position] for column in costs.values()],
                settings=list(settings[position]),
            )
        )
    return views


def _cost_columns(rows: Sequence[LeaderboardRow]) -> dict[str, list[str]]:
    """Return the cells of each cost that any row has, by the heading of the column."""
    groups = [row.group for row in rows]
    columns = {
        "parameters": [_number(group.mean_metric("parameters"), "{:,.0f}") for group in groups],
        "minutes": [_number(group.mean_seconds() / 60, "{:,.1f}") for group in groups],
        "latency, ms": [_number(group.mean_metric("latency_ms"), "{:,.2f}") for group in groups],
        "test set evaluations": [f"{group.test_set_accesses:,}" if group.test_set_accesses else "" for group in groups],
    }
    return {name: cells for name, cells in columns.items() if any(cells)}


def _interval_bar(gap: Difference, scale: tuple[float, float]) -> IntervalBar:
    """Place a gap and its interval between the lowest and the highest value that any row shows."""
    lowest, highest = scale

    def x(value: float) -> str:
        width = IntervalBar.WIDTH - 2 * IntervalBar.MARGIN
        return f"{IntervalBar.MARGIN + width * (value - lowest) / max(highest - lowest, 1e-9):.1f}"

    low, high = (x(gap.low), x(gap.high)) if gap.known else ("", "")
    return IntervalBar(x(0), x(gap.mean), low, high)


def _curves_picture(section: Section) -> Picture | None:
    rows = section.rows[: len(COLORS)]
    drawn = sum(any(section.curves.get(run.id) for run in row.group.runs) for row in rows)
    if not drawn:
        return None
    caption = f"Validation accuracy of {count(drawn, 'configuration')}. A line for each run; dashed: not finished."
    return _picture(to_svg(validation_curves(rows, section.curves)), "svg+xml", caption)


def _costs_picture(section: Section, metric: Metric) -> Picture | None:
    figure = accuracy_vs_cost(section.rows, COSTS, ACCURACY[metric])
    if figure is None:
        return None
    caption = (
        f"The {ACCURACY[metric]} against its cost. The line joins the Pareto front: configurations that no other one "
        "beats in both, labelled with their rank."
    )
    return _picture(to_svg(figure), "svg+xml", caption)


def _class_table(section: Section, views: Sequence[RowView]) -> ClassTable | None:
    """Return the mean recall of each class over the runs of each group; None if no run has logged recalls.

    Of many classes those are shown in which the groups differ most.
    """
    means = {}
    for position, row in enumerate(section.rows[: len(COLORS)]):
        known = [section.recalls[run.id] for run in row.group.runs if run.id in section.recalls]
        if known:
            means[position] = pd.concat(known, axis=1).mean(axis=1)
    if not means:
        return None
    recalls = pd.DataFrame(means)  # (classes, groups)
    shown = recalls
    if len(recalls) > CLASSES:
        spread = recalls.max(axis=1) - recalls.min(axis=1)
        shown = recalls[recalls.index.isin(spread.nlargest(CLASSES).index)]
    lowest = float(recalls.min().min())
    rows = [
        (str(name), [_shaded_cell(recall, lowest, max(cells)) for recall in cells])
        for name, cells in zip(shown.index, shown.to_numpy().tolist(), strict=True)
    ]
    return ClassTable([views[position] for position in means], rows, len(recalls) - len(shown))


def _shaded_cell(share: float, lowest: float, best: float) -> ShadedCell:
    if isnan(share):
        return ShadedCell("", "")
    opacity = 0.38 * (share - lowest) / max(1 - lowest, 1e-9)
    bold = "font-weight:600;" if share == best else ""
    return ShadedCell(f"{100 * share:.2f} %", f"{bold}background:rgba(0,114,178,{opacity:.3f})")


def _picture(content: bytes, kind: str, caption: str) -> Picture:
    data = base64.b64encode(content).decode("ascii")
    return Picture(f"data:image/{kind};base64,{data}", caption)


def _css_color(color: str) -> str:
    """Return a colour of matplotlib's as CSS writes it: matplotlib's greys are numbers in text."""
    return color if color.startswith("#") else f"hsl(0 0% {100 * float(color):.0f}%)"


def _number(value: float, spec: str) -> str:
    return "" if isnan(value) else spec.format(value)


def _subtitle(sections: Sequence[Section], metric: Metric) -> str:
    configurations = sum(len(section.rows) + section.others for section in sections)
    runs = sum(len(row.group.runs) for section in sections for row in section.rows)
    more = " and more" if any(section.others for section in sections) else ""
    return f"{count(configurations, 'configuration')}, {count(runs, 'run')}{more}, ranked by {ACCURACY[metric]}"


def _different_data(sections: Sequence[Section]) -> str:
    names = "; ".join(f"{section.data} {section.fingerprint}".strip() for section in sections)
    return (
        f"These runs used {len(sections)} different data sets ({names}). Accuracies on different data cannot be "
        "compared: each data set has its own leaderboard."
    )
