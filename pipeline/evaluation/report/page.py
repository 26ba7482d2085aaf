"""The report page: sections of compared groups of runs -> one HTML page, by way of the template report.html.j2."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import isnan, nan
from pathlib import Path
from typing import ClassVar, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.config.monitor import ResultMetric, metric_words, monitor_of, sign
from pipeline.evaluation.figures.report import Curves, Plot, metric_vs_cost, row_color, to_svg, validation_curves
from pipeline.evaluation.figures.style import COLORS
from pipeline.evaluation.report.examples import Strip
from pipeline.evaluation.report.groups import RunRecord, differing_settings
from pipeline.evaluation.report.leaderboard import LeaderboardRow
from pipeline.evaluation.significance import Difference
from pipeline.runtime.text import count, format_bare, format_metric

FOLDER = Path(__file__).parent  # of the template and the stylesheet
CLASSES = 20  # rows of the table of classes
LINKS = 12  # to runs of one configuration
SETTING_COLUMNS = 9  # of a table that is not wider than the page
COSTS = {
    "parameters": "parameters",
    "seconds": "seconds from start to end of a run",
    "latency_ms": "latency of one image, ms",
}
COMPARED_WITH_BEST = {
    "within noise": "within noise of it",
    "worse": "worse by more than noise",
    "better": "better by more than noise",
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
    strips: Sequence[Strip] = ()  # of test images
    image_notes: Sequence[str] = ()  # what a reader must know about the test images, a sentence each
    run_urls: Mapping[str, str] = field(default_factory=dict)  # by run id


def render_page(
    title: str, sections: Sequence[Section], metric: ResultMetric, *, notes: Sequence[str], facts: Mapping[str, str]
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
    script = (FOLDER / "report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        title=title,
        subtitle=_subtitle(sections, metric),
        warnings=[*([_different_data(sections)] if len(sections) > 1 else []), *notes],
        sections=[_view_section(section, metric, number) for number, section in enumerate(sections)],
        metric=metric_words(metric),
        is_higher_better=sign(metric) > 0,
        facts=facts,
        stylesheet=(FOLDER / "report.css").read_text(encoding="utf-8"),
        most_columns=SETTING_COLUMNS,
        script=script,
        script_hash=base64.b64encode(sha256(script.encode()).digest()).decode("ascii"),
    )


def answer(section: Section, metric: ResultMetric) -> str:
    """Return in a few sentences which configuration is best, and how the others compare with it."""
    ranked = [row for row in section.rows if row.is_ranked]
    if not ranked:
        return "No run has finished, so there is nothing to conclude yet."
    best, *others = ranked
    verdicts = [row.verdict for row in others]
    counts = {phrase: verdicts.count(verdict) for verdict, phrase in COMPARED_WITH_BEST.items() if verdict in verdicts}
    sentence = _best_sentence(best, metric)
    if not counts:
        return f"{sentence} There is no other configuration to compare it with."
    if len(verdicts) == 1:
        return f"{sentence} The other is {next(iter(counts))}."
    which = f"the next {len(verdicts)}" if section.others else "the others"
    compared = ", ".join(f"{number} {'is' if number == 1 else 'are'} {phrase}" for phrase, number in counts.items())
    return f"{sentence} Of {which}, {compared}."


def _best_sentence(best: LeaderboardRow, metric: ResultMetric) -> str:
    group = best.group
    runs, spread = "one run", ""
    if len(group.runs) > 1:
        runs, spread = f"{len(group.runs)} runs", f" ± {format_bare(metric, best.sample.sd)}"
    mean, words = f"{format_metric(metric, best.sample.mean)}{spread}", metric_words(metric)
    if group.kind != "winner":
        return f"{group.name} has the {'highest' if sign(metric) > 0 else 'lowest'} {words}: {mean} of {runs}."
    test_metric = _test_metric(metric)
    value = group.mean_metric(test_metric)
    is_shown = metric == test_metric or isnan(value)
    tested = "" if is_shown else f"; {metric_words(test_metric)} {format_metric(test_metric, value)}"
    of_search = f" of search {group.study}" if group.study else " of its search"
    return f"{group.name} is the winner{of_search}: {words} {mean} of {runs}{tested}."


def _test_metric(metric: ResultMetric) -> str:
    return monitor_of(metric).replace("val_", "test_")


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


class LegendEntry(NamedTuple):
    """What the lines of one row look like."""

    position: int
    name: str
    color: str
    is_dashed: bool


class PlotView(NamedTuple):
    """A plot that is part of the page."""

    svg: str
    caption: str
    legend: list[LegendEntry]


@dataclass(frozen=True)
class IntervalBar:
    """The x coordinates of an interval's picture, in pixels; `low` and `high` are empty if there is no interval."""

    WIDTH: ClassVar[int] = 96
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


class RunLink(NamedTuple):
    """A run by its seed, and its page."""

    name: str
    url: str  # empty if there is none


class RowView(NamedTuple):
    """A row of the leaderboard and of the table of settings; cells without a value are empty."""

    rank: int
    name: str
    badges: list[str]  # what the runs are for a search, and what is special in the model
    models: list[str]  # those that they have started from or were taught by
    color: str
    css_class: str
    runs_text: str
    links: list[RunLink]
    more_runs: int  # number of those that have no link
    value: str
    sd: str
    gap: str
    interval: str
    bar: IntervalBar | None
    over: str  # what the interval was taken over
    verdict: str
    state: str
    settings: list[str]  # in the order of `SectionView.setting_names`


class ShareCell(NamedTuple):
    """A share on blue, the more opaque the higher; the best of its row in bold."""

    text: str
    css_class: str
    opacity: str


class ClassTable(NamedTuple):
    """Recall of each class, a row a class and a column a group."""

    columns: list[RowView]
    rows: list[tuple[str, list[ShareCell]]]
    hidden: int  # number of classes that are left out


class Leaderboard(NamedTuple):
    """Rows of the leaderboard, and the further figures that any of them has: the cells by the heading of the column."""

    rows: list[RowView]
    costs: dict[str, list[str]]


class SectionView(NamedTuple):
    """All that the template writes of one section."""

    data: str
    fingerprint: str
    answer: str
    test_set_accesses: str
    rows: list[RowView]
    ranked: Leaderboard
    apart: Leaderboard  # of the trials that are not compared with the others
    others: int
    setting_names: list[str]
    curves: PlotView | None
    costs: list[PlotView]
    classes: ClassTable | None
    kernels: list[Picture]
    strips: Sequence[Strip]
    image_notes: Sequence[str]


def _view_section(section: Section, metric: ResultMetric, number: int) -> SectionView:
    settings = differing_settings([row.group for row in section.rows])
    rows = _view_rows(section, metric, settings.to_numpy().tolist())
    ranked, apart = (
        Leaderboard(
            [view for view, row in zip(rows, section.rows, strict=True) if row.group.is_ranked_apart == is_apart],
            _further_columns([row for row in section.rows if row.group.is_ranked_apart == is_apart], metric),
        )
        for is_apart in (False, True)
    )
    return SectionView(
        data=section.data,
        fingerprint=section.fingerprint,
        answer=answer(section, metric),
        test_set_accesses=describe_test_set_accesses(section),
        rows=rows,
        ranked=ranked,
        apart=apart,
        others=section.others,
        setting_names=settings.columns.tolist(),
        curves=_view_curves(section, metric, number),
        costs=_view_costs(section, metric, number),
        classes=_class_table(section, rows),
        kernels=[
            Picture(
                f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}",
                f"{row.rank} {row.group.name}: depthwise kernels of the middle block.",
            )
            for row, png in section.kernels
        ],
        strips=section.strips,
        image_notes=section.image_notes,
    )


def _view_rows(section: Section, metric: ResultMetric, settings: Sequence[Sequence[str]]) -> list[RowView]:
    gaps = [row.gap for row in section.rows if row.gap]
    limits = [limit for gap in gaps for limit in (gap.low, gap.mean, gap.high) if not isnan(limit)]
    scale = min([0.0, *limits]), max([0.0, *limits])
    views = []
    for position, row in enumerate(section.rows):
        group, gap = row.group, row.gap
        limits_of = [format_bare(metric, limit, "+") for limit in (gap.low, gap.high)] if gap and gap.known else []
        unfinished = "" if group.finished else "unfinished"
        shown = group.runs[:LINKS]
        views.append(
            RowView(
                rank=row.rank,
                name=group.name,
                badges=[*([] if group.kind == "run" or group.is_ranked_apart else [group.kind]), *group.traits],
                models=group.models,
                color=row_color(position),
                css_class="best" if row.verdict == "best" else unfinished,
                runs_text=f"{count(len(group.runs), 'run')}, seed{'' if len(group.runs) == 1 else 's'}",
                links=[
                    *(RunLink(_seed_of(run), section.run_urls.get(run.id, "")) for run in shown),
                    *(RunLink("refit", section.run_urls.get(run.id, "")) for run in group.refits),
                ],
                more_runs=len(group.runs) - len(shown),
                value="" if isnan(row.sample.mean) else format_metric(metric, row.sample.mean),
                sd="" if isnan(row.sample.sd) else format_bare(metric, row.sample.sd),
                gap="" if gap is None or isnan(gap.mean) else format_bare(metric, gap.mean),
                interval=" to ".join(limits_of),
                bar=_interval_bar(gap, scale) if gap and not isnan(gap.mean) else None,
                over=gap.over if gap else "",
                verdict=row.verdict,
                state=group.state,
                settings=list(settings[position]),
            )
        )
    return views


def _seed_of(run: RunRecord) -> str:
    return run.params.get("seed") or "unknown"


def _further_columns(rows: Sequence[LeaderboardRow], metric: ResultMetric) -> dict[str, list[str]]:
    """Return the cells of each further figure that any row has, by the heading of the column."""
    groups = [row.group for row in rows]
    # what the ranking is about on the test images, and their accuracy
    others = dict.fromkeys(name for name in (_test_metric(metric), "test_accuracy") if name != metric)
    tested = {name: [group.mean_metric(name) for group in groups] for name in others}
    columns = {
        metric_words(name): ["" if isnan(value) else format_metric(name, value) for value in values]
        for name, values in tested.items()
    } | {
        "parameters": [_number(group.mean_metric("parameters"), "{:,.0f}") for group in groups],
        "minutes": [_number(group.mean_seconds() / 60, "{:,.1f}") for group in groups],
        "energy, kWh": [_number(group.mean_metric("energy_kwh"), "{:,.3g}") for group in groups],
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


def _view_curves(section: Section, metric: ResultMetric, number: int) -> PlotView | None:
    rows = section.rows[: len(COLORS)]
    drawn = [
        (position, row)
        for position, row in enumerate(rows)
        if any(section.curves.get(run.id) for run in row.group.runs)
    ]
    if not drawn:
        return None
    words = metric_words(monitor_of(metric)).capitalize().replace("f1", "F1")
    caption = f"{words} of {count(len(drawn), 'configuration')}. A line for each run; dashed: not finished."
    legend = [
        LegendEntry(
            position,
            f"{row.rank} {row.group.name}" + ("" if row.group.finished else f" ({row.group.state})"),
            row_color(position),
            is_dashed=not row.group.finished,
        )
        for position, row in drawn
    ]
    return _view_plot(validation_curves(rows, section.curves, monitor_of(metric)), f"curves-{number}", caption, legend)


def _view_costs(section: Section, metric: ResultMetric, number: int) -> list[PlotView]:
    caption = (
        f"The {metric_words(metric)} against its cost. The line joins the Pareto front: configurations that no other "
        "one beats in both, labelled with their rank."
    )
    plots = metric_vs_cost(section.rows, COSTS, metric)
    return [_view_plot(plot, f"{cost}-{number}", caption, []) for cost, plot in plots.items()]


def _view_plot(plot: Plot, name: str, caption: str, legend: list[LegendEntry]) -> PlotView:
    return PlotView(to_svg(plot, name=name, alt=caption.split(". ")[0]), caption, legend)


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
        (str(name), [_share_cell(recall, lowest, max(cells) if len(cells) > 1 else nan) for recall in cells])
        for name, cells in zip(shown.index, shown.to_numpy().tolist(), strict=True)
    ]
    return ClassTable([views[position] for position in means], rows, len(recalls) - len(shown))


def _share_cell(share: float, lowest: float, best: float) -> ShareCell:
    if isnan(share):
        return ShareCell("", "share", "0")
    opacity = 0.38 * (share - lowest) / max(1 - lowest, 1e-9)
    return ShareCell(f"{100 * share:.2f} %", "share first" if share == best else "share", f"{opacity:.3f}")


def _number(value: float, spec: str) -> str:
    return "" if isnan(value) else spec.format(value)


def _subtitle(sections: Sequence[Section], metric: ResultMetric) -> str:
    configurations = sum(len(section.rows) + section.others for section in sections)
    runs = sum(len(row.group.runs) for section in sections for row in section.rows)
    more = " and more" if any(section.others for section in sections) else ""
    return f"{count(configurations, 'configuration')}, {count(runs, 'run')}{more}, ranked by {metric_words(metric)}"


def _different_data(sections: Sequence[Section]) -> str:
    names = "; ".join(f"{section.data} {section.fingerprint}".strip() for section in sections)
    return (
        f"These runs used {len(sections)} different data sets ({names}). Results on different data cannot be "
        "compared: each data set has its own leaderboard."
    )
