"""Figure of a search: the value of the trials against a cost, such as the size of the model, with the Pareto front."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter, NullLocator
from numpy.typing import NDArray

from pipeline.config.monitor import Direction
from pipeline.evaluation.figures.axis_scale import log_ticks, setting_names
from pipeline.evaluation.figures.search_style import (
    FRONT,
    STAR,
    Winner,
    find_leader,
    metric_axis,
    new_figure,
    none_finished,
    scale_of,
)
from pipeline.evaluation.figures.style import (
    BLUE,
    GREY,
    Figure,
    axes_at,
    default_style,
    ellipsize,
    text_figure,
    text_width,
    titled,
)
from pipeline.evaluation.ranking import finished, pareto_front, sign
from pipeline.runtime.text import format_value, short_settings, trial_name

COSTS = {  # column: (name in the title, axis label)
    "parameters": ("model size", "parameters"),
    "epoch_seconds": ("training time", "seconds an epoch"),
    "latency_ms": ("latency", "milliseconds an image, one at a time"),
}
NAMED_BY_SETTINGS = 6  # members of a Pareto front that are labelled with their settings; of more, the trials' numbers


@default_style()
def value_vs_cost(
    trials: pd.DataFrame,
    *,
    metric: str,
    direction: Direction,
    cost: str = "parameters",
    subject: str = "",
    winner: Winner | None = None,
) -> Figure:
    """Draw the value of every finished trial against a cost, with the Pareto front and its members' names.

    A name has the settings in which the finished trials differ, or the trial's number if it would be long or the
    members are many; and the latency if it was measured.

    Args:
        trials: The table of trials.
        metric: Name of the value.
        direction: Whether it is maximized or minimized.
        cost: A column of positive numbers, which is minimized.
        subject: Of which data, split and search, for the title.
        winner: The trial to mark instead of the best one.
    """
    name, label = COSTS.get(cost, (ellipsize(cost, 2.5, 11), cost))
    title = f"{ellipsize(metric, 2.5, 11)} against {name}"
    if (leader := find_leader(trials, metric=metric, direction=direction, winner=winner)) is None:
        return none_finished(trials, titled(title, subject))
    done = finished(trials)
    done = done[pd.to_numeric(done[cost]) > 0]
    front = pareto_front(done, direction=direction, cost=cost)
    if not front:
        return text_figure(f"needs a trial that has logged its {name}, there are none", title=titled(title, subject))
    costs, values = done[cost].to_numpy(float), done["value"].to_numpy(float)
    members = [int(np.flatnonzero(done["number"] == number)[0]) for number in front]
    names = _member_names(done, members)

    # Names stand left of their points and above them, below if values are minimized: no trial can be there, or it
    # would be the member instead. Each is at least a line beyond the one before.
    size, line_height = 8, 0.15  # points, inches
    scale = scale_of(values, metric, "maximize")
    width, height = 6.6, 3.6  # inches of the axes
    rise = (height - 0.6) * _unit(sign(direction) * scale.forward(values)) + 0.2  # inches; the better, the higher
    lines = line_height * np.arange(len(members))
    middles = np.maximum.accumulate(rise[members] + 0.125 - lines) + lines
    height = max(height, middles[-1] + 0.2)
    left = max(text_width(name, size) for name in names) + 0.2

    figure = new_figure(width + 1.3, height + 1.75, title, subject, trials, leader)
    axes = axes_at(figure, 0.95, 0.6, width, height)
    axes.set_xscale("log")
    low, high = 10 ** _limits(np.log10(costs), before=left, inches=width - left - 0.3, after=0.3)
    axes.set_xlim(low, high)
    scale.apply(axes, values)
    limits = _limits(sign(direction) * scale.forward(values), before=0.2, inches=3.0, after=height - 3.2)
    axes.set_ylim(*sorted(scale.inverse(sign(direction) * limits)))

    axes.plot(costs, values, "o", color=BLUE, alpha=0.45, markersize=4 if len(done) > 60 else 6, markeredgewidth=0)
    axes.step(costs[members], values[members], where="post", color=FRONT, linewidth=1.2, zorder=3)
    axes.plot(costs[members], values[members], "o", color=FRONT, markersize=6, zorder=4, label="Pareto front")
    is_leader = (done["number"] == leader.number).to_numpy()
    axes.plot(costs[is_leader], values[is_leader], **STAR, zorder=5, label=leader.name)
    for member, name, middle in zip(members, names, middles, strict=True):
        distance = middle - rise[member]  # inches
        far = distance > 0.2
        axes.annotate(
            name,
            (costs[member], values[member]),
            (-6, 72 * sign(direction) * distance),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=size,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "relpos": (1, 0.5)} if far else None,
            parse_math=False,
        )
    axes.set_xticks([tick for tick in log_ticks(low, high) if low <= tick <= high])
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"{label} (log scale)")
    metric_axis(axes, metric, height, scale.note)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0)
    return figure


def _member_names(done: pd.DataFrame, members: Sequence[int]) -> list[str]:
    """Return the names of a Pareto front's members, which are positions in the table of finished trials."""
    rows = done.iloc[list(members)]
    varied = [name for name in setting_names(done) if done[f"params.{name}"].map(format_value).nunique() > 1]
    settings = rows[[f"params.{name}" for name in varied or setting_names(done)]]
    settings.columns = settings.columns.str.removeprefix("params.")
    names = [
        short_settings(dict(zip(settings.columns, row, strict=True))) for row in settings.astype(object).to_numpy()
    ]
    if len(names) > NAMED_BY_SETTINGS or max(map(len, names)) > 24:
        names = [trial_name(int(number), {}) for number in rows["number"]]
    if "latency_ms" not in rows:
        return names
    return [
        name if np.isnan(latency) else f"{name}, {latency:.3g} ms"
        for name, latency in zip(names, rows["latency_ms"].to_numpy(float), strict=True)
    ]


def _unit(values: NDArray) -> NDArray:
    """Return the values scaled to 0..1; all in the middle if they are equal."""
    return (values - values.min()) / np.ptp(values) if np.ptp(values) else np.full(len(values), 0.5)


def _limits(values: NDArray, *, before: float, inches: float, after: float) -> NDArray:
    """Return the limits of an axis on which the values span `inches`, with room before and after them.

    Equal values stand in the middle, see `_unit`.
    """
    span = np.ptp(values)
    low, high = values.min(), values.max()
    if not span:
        span = 0.02 * inches
        low, high = low - span / 2, high + span / 2
    return np.array([low - before * span / inches, high + after * span / inches])
