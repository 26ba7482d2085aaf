"""Where the values of a searched setting lie on an axis: words and few numbers a place each, many numbers on a line."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import ceil, floor, log10, sqrt

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.evaluation.figures.style import finite_or_nan
from pipeline.runtime.text import format_value

FEW = 12  # distinct numbers that get a place each


@dataclass(frozen=True)
class AxisScale:
    """Where values lie from 0 to 1, and the ticks there; `cells` equal parts, each for one value if `discrete`."""

    name: str
    places: NDArray  # (trials,), NaN where a number is missing among many
    ticks: list[float]
    labels: list[str]
    discrete: bool
    cells: int = 8

    def spread(self, numbers: pd.Series) -> NDArray:
        """The places, those of trials with the same value a little apart; one trial alone stays in the middle."""
        if not self.discrete or len(numbers) == 1:
            return self.places
        golden = numbers.to_numpy() * (sqrt(5) - 1) / 2 % 1  # neighbours in time far apart
        return self.places + 0.4 * (golden - 0.5) / self.cells

    def cell(self) -> NDArray:
        """The number of the part that each place is in, -1 where there is none."""
        return np.nan_to_num(np.minimum(np.floor(self.places * self.cells), self.cells - 1), nan=-1).astype(int)

    def cell_ticks(self) -> list[float]:
        """The ticks where cell n is centred on n."""
        return [tick * self.cells - 0.5 for tick in self.ticks]


def setting_names(trials: pd.DataFrame) -> list[str]:
    """The searched settings, from the columns `params.<name>`."""
    return [name.removeprefix("params.") for name in trials.columns if name.startswith("params.")]


def setting_scales(trials: pd.DataFrame, log: Collection[str]) -> list[AxisScale]:
    """A scale for every searched setting, those in `log` logarithmic."""
    return [setting_scale(trials, name, log=name in log) for name in setting_names(trials)]


def setting_scale(trials: pd.DataFrame, name: str, *, log: bool) -> AxisScale:
    """The axis of one setting: words, and numbers that are few and come again, get a place each."""
    values = trials[f"params.{name}"].tolist()
    labels = [format_value(value) for value in values]
    by_label = {label: _order(value) for label, value in zip(labels, values, strict=True)}
    distinct = sorted(by_label, key=lambda label: by_label[label])
    numeric = all(by_label[label][0] in (0, 1) for label in distinct)
    whole = all(label.lstrip("-").isdigit() or label == "none" for label in distinct)
    again = "none" in distinct or 2 * len(distinct) <= max(len(values), 2)
    if not numeric or (len(distinct) <= FEW and (whole or again)):
        ticks = [(index + 0.5) / len(distinct) for index in range(len(distinct))]
        places = np.array([ticks[distinct.index(label)] for label in labels])
        return AxisScale(name, places, ticks, distinct, discrete=True, cells=len(distinct))
    return line_scale(name, finite_or_nan([np.nan if value is None else float(value) for value in values]), log=log)


def _order(value: object) -> tuple[int, float, str]:
    """None, then numbers, then words."""
    label = format_value(value)
    if label == "none":
        return 0, 0, ""
    try:
        return 1, float(label), ""
    except ValueError:
        return 2, 0, label


def line_scale(
    name: str, values: NDArray, *, log: bool, format_tick: Callable[[float], str] = format_value
) -> AxisScale:
    """Numbers between their smallest and their largest, which differ."""
    low, high = np.nanmin(values), np.nanmax(values)
    log = log and low > 0
    ticks = [tick for tick in (log_ticks if log else _linear_ticks)(low, high) if low <= tick <= high]
    bend = np.log10 if log else np.asarray
    places = (bend(np.array([*values, *ticks])) - bend(low)) / (bend(high) - bend(low))
    return AxisScale(
        name, places[: len(values)], list(places[len(values) :]), [format_tick(tick) for tick in ticks], discrete=False
    )


def _linear_ticks(low: float, high: float) -> list[float]:
    return [float(f"{tick:.10g}") for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; if they are few 3, or 2 and 5, times each as well; on less than that as for a plain scale."""
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    for factors in ([1], [1, 3], [1, 2, 5]):
        ticks = [float(f"{factor}e{decade}") for decade in decades for factor in factors]
        if sum(low <= tick <= high for tick in ticks) >= 3:
            return ticks
    return _linear_ticks(low, high)
