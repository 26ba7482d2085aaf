"""Figure of a search: how much of the metric's variation each setting explains."""

from collections.abc import Mapping

import numpy as np

from pipeline.evaluation.figures.search_style import value_ticks
from pipeline.evaluation.figures.style import (
    BLUE,
    DPI,
    Figure,
    axes_at,
    default_style,
    draw_title,
    ellipsize,
    finite_or_nan,
    text_figure,
    text_width,
)
from pipeline.runtime.text import percent


@default_style()
def parameter_importances(importances: Mapping[str, float], *, metric: str) -> Figure:
    """Draw how much of the metric's variation each setting explains, the largest share first.

    Args:
        importances: Fractions by setting, as `optuna.importance.get_param_importances` returns them. Empty if fewer
            than two trials have finished: the figure then says so.
        metric: Name of the metric.
    """
    if not importances:
        return text_figure("Not enough trials have finished to estimate importances")
    shares = dict(zip(importances, np.nan_to_num(finite_or_nan(list(importances.values()))), strict=True))
    ranked = sorted(shares, key=lambda name: -shares[name])
    names = [ellipsize(name, 2.4, 10) for name in ranked]
    labels_width, height = max(text_width(name, 10) for name in names) + 0.25, 0.34 * len(ranked)
    width = max(labels_width + 4.8, 6.4)
    figure = Figure(figsize=(width, height + 1.3), dpi=DPI)
    draw_title(
        figure,
        f"Importance of settings for {ellipsize(metric, 3.5, 11)}",
        "share of its variation that each setting explains",
    )
    axes = axes_at(figure, labels_width, 0.5, width - labels_width - 0.75, height)
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
