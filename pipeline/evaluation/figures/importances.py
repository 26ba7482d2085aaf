"""Figure of a search: how much each setting matters."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from pipeline.evaluation.figures.search_style import states_of, value_ticks
from pipeline.evaluation.figures.style import (
    BLUE,
    DPI,
    Figure,
    axes_at,
    default_style,
    draw_title,
    ellipsize,
    text_figure,
    text_width,
    titled,
)
from pipeline.evaluation.ranking import finished
from pipeline.runtime.text import count, percent

PALE = "#8FBEDD"
# states of trials that have a value: Optuna knows a duplicate as complete, too
COUNTED = ("complete", "duplicate")
# Optuna's advice for PED-ANOVA: five trials among the best tenth
RELIABLE = 50
FANOVA_LABEL = "fANOVA: share of the variation of the values that it explains"
PED_ANOVA_LABEL = "PED-ANOVA, as in optuna-dashboard: share in being among the best 10 %"


@default_style()
def parameter_importances(
    fanova: Mapping[str, float],
    ped_anova: Mapping[str, float],
    trials: pd.DataFrame,
    *,
    metric: str,
    needed: int,
    drawn_in: Mapping[str, int] | None = None,
    subject: str = "",
) -> Figure:
    """Draw how much each setting matters for the metric by two methods, which answer different questions.

    Args:
        fanova: Fractions by setting, as `optuna.importance.get_param_importances` returns them. Empty if too few trials
            have finished, or too few settings were searched: the figure then says so.
        ped_anova: The same by the other method.
        trials: The table of trials.
        metric: Name of the metric.
        needed: How many trials with different values it takes.
        drawn_in: By setting that was not drawn in every trial: in how many finished ones it was, among which it matters
            so much.
        subject: Of which data, split and search, for the title.
    """
    title = titled("Importance of settings", subject)
    values = pd.to_numeric(trials.loc[trials["state"].isin(COUNTED), "value"])
    number = int(np.isfinite(values).sum())
    if not fanova:
        different = finished(trials)["value"].nunique()
        there = "is 1" if different == 1 else f"are {different:,}"
        needs = f"needs {needed} finished trials of different values, there {there}"
        return text_figure(needs if different < needed else "needs 2 searched settings, there is 1", title=title)
    ranked = sorted(fanova, key=lambda name: -_finite(fanova[name]))
    of_its = {name: f" ({count(trials_with, 'trial')})" for name, trials_with in (drawn_in or {}).items()}
    names = [ellipsize(name, 2.4, 10) + of_its.get(name, "") for name in ranked]
    labels_width, height = max(text_width(name, 10) for name in names) + 0.25, 0.45 * len(ranked)
    width = max(labels_width + 5.3, 6.4)
    figure = Figure(figsize=(width, height + 1.85), dpi=DPI)
    left_out = [f"{(trials['state'] == state).sum():,} {state}" for state in states_of(trials) if state not in COUNTED]
    draw_title(
        figure,
        title,
        f"for {ellipsize(metric, 3, 9)}, estimated from {count(number, 'finished trial')}",
        f"left out: {', '.join(left_out)}" if left_out else "",
        f"with fewer than {RELIABLE} trials PED-ANOVA is a rough hint" if number < RELIABLE else "",
        "in brackets: the trials in which a setting was drawn, among which it matters so much" if drawn_in else "",
    )
    axes = axes_at(figure, labels_width, 0.5, width - labels_width - 0.75, height)
    places = np.arange(len(ranked))
    for shares, offset, color, label in ((fanova, -0.2, BLUE, FANOVA_LABEL), (ped_anova, 0.2, PALE, PED_ANOVA_LABEL)):
        lengths = [_finite(shares.get(name, 0.0)) for name in ranked]
        bars = axes.barh(places + offset, lengths, height=0.38, color=color, label=label)
        axes.bar_label(bars, [percent(length) for length in lengths], padding=4, fontsize=8)
    axes.set_yticks(places, names, parse_math=False)
    axes.set_ylim(len(ranked) - 0.5, -0.5)
    axes.set_xlim(0, max(0.01, *map(_finite, [*fanova.values(), *ped_anova.values()])))
    axes.tick_params(left=False)
    value_ticks(axes.xaxis, "accuracy")
    axes.spines[["top", "right"]].set_visible(False)
    corner = -labels_width / (width - labels_width - 0.75)
    axes.legend(loc="lower left", bbox_to_anchor=(corner, 1), frameon=False, fontsize=8, borderaxespad=0.3)
    return figure


def _finite(share: float) -> float:
    return share if np.isfinite(share) else 0.0
