"""Figure of a search: the value against each setting, a panel a setting."""

from math import ceil, sqrt
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from pipeline.config.monitor import Direction
from pipeline.evaluation.figures.axis_scale import NOT_DRAWN, AxisScale, Space, setting_scales
from pipeline.evaluation.figures.search_style import (
    DARKER_IS_BETTER,
    MARKS,
    STAR,
    Winner,
    find_leader,
    new_figure,
    none_finished,
    value_axis,
)
from pipeline.evaluation.figures.style import (
    Figure,
    axes_at,
    default_style,
    ellipsize,
    finite_or_nan,
    text_width,
    titled,
)
from pipeline.evaluation.ranking import finished


@default_style()
def slices(
    trials: pd.DataFrame,
    *,
    metric: str,
    direction: Direction,
    space: Space,
    subject: str = "",
    winner: Winner | None = None,
) -> Figure:
    """Draw the value against each setting, a panel a setting; later trials are darker.

    Trials of the same category stand side by side. A pruned trial stands at its last value. Each of few values that the
    search may try has a tick, whether a trial has tried it or not.
    """
    title = "Slices"
    if (leader := find_leader(trials, metric=metric, direction=direction, winner=winner)) is None:
        return none_finished(trials, titled(title, subject))
    pruned = trials[(trials["state"] == "pruned") & np.isfinite(finite_or_nan(trials["value"].to_numpy(float)))]
    shown = pd.concat([finished(trials), pruned]).sort_values("number")
    complete = (shown["state"] == "complete").to_numpy()
    numbers, values = shown["number"].to_numpy(), shown["value"].to_numpy(float)
    settings = setting_scales(shown, space)
    columns = ceil(sqrt(len(settings))) if len(settings) > 4 else len(settings)
    rows = ceil(len(settings) / columns)
    width, height = max(2.3, 5.2 / columns), 2.1 if columns > 1 else 3.0  # inches of a panel
    # inches below a panel: of the last row, and of one above another
    edge = 0.55 if all(NOT_DRAWN not in setting.labels for setting in settings) else 0.72
    pitch = height + edge + 0.1
    figure = new_figure(width * columns + 2.25, pitch * rows + edge + 0.45, title, subject, trials, leader)
    norm = Normalize(trials["number"].min(), trials["number"].max())
    for index, setting in enumerate(settings):
        row, column = divmod(index, columns)
        bottom = edge + (rows - 1 - row) * pitch
        axes = axes_at(figure, 1.1 + width * column, bottom, width - 0.15, height)
        x = setting.spread()
        if not complete.all():
            mark: dict[str, Any] = MARKS["pruned"] | {"linestyle": "none", "markersize": 4, "label": "pruned"}
            axes.plot(x[~complete], values[~complete], **mark)
        axes.scatter(
            x[complete],
            values[complete],
            c=numbers[complete],
            cmap=DARKER_IS_BETTER,
            norm=norm,
            s=14 if len(shown) > 60 else 30,
            edgecolors="white",
            linewidths=0.3,
            zorder=3,
        )
        axes.plot(x[numbers == leader.number], values[numbers == leader.number], **STAR, zorder=4, label=leader.name)
        _setting_axis(axes, setting, width - 0.2)
        value_axis(axes, values, metric, direction, height)
        if column:
            axes.set_ylabel("")
            axes.tick_params(labelleft=False)
    legend: dict[str, Any] = {"frameon": False, "borderaxespad": 0.2, "fontsize": 8, "handletextpad": 0.2}
    figure.axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, **legend)
    if len(shown) > 2:
        key = axes_at(figure, width * columns + 1.2, edge, 0.15, min(pitch * rows - edge - 0.1, 3))
        bar = figure.colorbar(ScalarMappable(norm, DARKER_IS_BETTER), cax=key)
        bar.locator = MaxNLocator(5, integer=True)
        bar.set_label("trial")
    return figure


def _setting_axis(axes: Axes, setting: AxisScale, inches: float) -> None:
    """Label an x axis with a setting: words are cut to fit, numbers that would touch the one before are left out."""
    room = max(inches / len(setting.ticks) - 0.08, 0.3) if setting.ticks else inches
    ticks, labels, free_from = [], [], -1.0
    for tick, label in zip(setting.ticks, setting.labels, strict=True):
        # In two lines, as it stands at the left end, beside the panel before
        lines = (
            ["not", "drawn"] if label == NOT_DRAWN else [ellipsize(label, room if setting.categorical else inches, 8)]
        )
        half = max(text_width(line, 8) for line in lines) / 2
        if inches * tick - half > free_from:
            ticks.append(tick)
            labels.append("\n".join(lines))
            free_from = inches * tick + half + 0.05
    axes.set_xticks(ticks, labels, fontsize=8, parse_math=False)
    axes.set_xlim(-0.07, 1.07)
    axes.set_xlabel(ellipsize(setting.name, inches, 10), parse_math=False)
