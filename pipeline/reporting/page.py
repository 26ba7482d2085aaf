"""Sections of compared recipes -> one page of HTML that needs nothing beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from pipeline.reporting import figures, tables
from pipeline.reporting.leaderboard import Standing
from pipeline.reporting.markup import definitions, picture, text
from pipeline.reporting.recipes import Metric
from pipeline.style import COLOURS, count

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
    found: Sequence[Standing]  # the best, as many as there is room for
    others: int  # recipes beyond these
    test_opened: int  # how often the test images have been looked at, by all runs
    curves: figures.Curves = field(default_factory=dict)
    recalls: "Mapping[str, pd.Series[float]]" = field(default_factory=dict)
    kernels: Sequence[tuple[Standing, bytes]] = ()  # PNG of two recipes' filters


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
        f"<h3>Leaderboard</h3>\n{tables.leaderboard(found, accuracy)}{more}"
        f'<p class="note">{text(opened(section))}</p>\n'
        f"{_curves(section)}{_settings(section)}{_costs(section, accuracy)}{_classes(section)}{_kernels(section)}"
    )


def _curves(section: Section) -> str:
    drawn = [one for one in section.found[: len(COLOURS)] if any(section.curves.get(r.id) for r in one.recipe.runs)]
    if not drawn:
        return ""
    first = section.found[: len(COLOURS)]  # so that each keeps its colour
    caption = f"Validation accuracy of {count(len(drawn), 'recipe')}. A line a run; dashed: not finished."
    content = figures.svg(figures.validation_curves(first, section.curves))
    return f"<h3>Curves</h3>\n{picture(content, 'svg+xml', caption=caption)}"


def _settings(section: Section) -> str:
    if len(section.found) < 2:
        return ""
    same = '<p class="note">These recipes differ in no setting.</p>\n'
    return f"<h3>What differs</h3>\n{tables.settings(section.found) or same}"


def _costs(section: Section, accuracy: str) -> str:
    figure = figures.against_costs(section.found, COSTS, accuracy)
    if figure is None:
        return ""
    caption = (
        f"What {accuracy} costs. The line joins the recipes that no other one beats in both (the Pareto front), "
        "which bear their number."
    )
    return f"<h3>Accuracy and its price</h3>\n{picture(figures.svg(figure), 'svg+xml', caption=caption)}"


def _classes(section: Section) -> str:
    table, hidden = tables.classes(section.found[: len(COLOURS)], section.recalls)
    if not table:
        return ""
    note = f"The {tables.CLASSES} classes on which they differ most; {hidden:,} more." if hidden else ""
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
