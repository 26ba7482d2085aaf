"""The scale of an axis for a searched setting: categories and few numbers get a place each, many numbers a line."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import ceil, floor, log10, sqrt

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.evaluation.figures.style import finite_or_nan
from pipeline.runtime.text import format_value

FEW = 12  # distinct numbers at most that get a place each


@dataclass(frozen=True)
class AxisScale:
    """The places of a setting's values on an axis from 0 to 1, and its ticks."""

    name: str
    places: NDArray  # (trials,); NaN where a number is missing among many
    ticks: list[float]
    labels: list[str]
    discrete: bool  # each value has a place of its own
    cells: int = 8  # equal parts of the axis; one for each value if the scale is discrete

    def spread(self, numbers: pd.Series) -> NDArray:
        """Return the places, with trials of the same value a little apart; a single trial stays in the middle.

        Args:
            numbers: Of the trials.
        """
        if not self.discrete or len(numbers) == 1:
            return self.places
        # multiples of the golden ratio, so that consecutive trials are far apart
        golden = numbers.to_numpy() * (sqrt(5) - 1) / 2 % 1
        return self.places + 0.4 * (golden - 0.5) / self.cells

    def cell(self) -> NDArray:
        """Return the cell of each trial, counted from 0; -1 if it has no place."""
        return np.nan_to_num(np.minimum(np.floor(self.places * self.cells), self.cells - 1), nan=-1).astype(int)

    def cell_ticks(self) -> list[float]:
        """Return the ticks on an axis where cell n is centred on n."""
        return [tick * self.cells - 0.5 for tick in self.ticks]


def setting_names(trials: pd.DataFrame) -> list[str]:
    """Return the searched settings, from the columns `params.<name>`."""
    return [name.removeprefix("params.") for name in trials.columns if name.startswith("params.")]


def setting_scales(trials: pd.DataFrame, log: Collection[str]) -> list[AxisScale]:
    """Return a scale for every searched setting, logarithmic for those in `log`."""
    return [setting_scale(trials, name, log=name in log) for name in setting_names(trials)]


def setting_scale(trials: pd.DataFrame, name: str, *, log: bool) -> AxisScale:
    """Return the scale of one setting: categories, and numbers that are few and repeated, get a place each."""
    values = trials[f"params.{name}"].tolist()
    labels = [format_value(value) for value in values]
    sort_keys = {label: _sort_key(value) for label, value in zip(labels, values, strict=True)}
    distinct = sorted(sort_keys, key=lambda label: sort_keys[label])
    numeric = all(sort_keys[label][0] in (0, 1) for label in distinct)
    whole = all(label.lstrip("-").isdigit() or label == "none" for label in distinct)
    repeated = "none" in distinct or 2 * len(distinct) <= max(len(values), 2)
    if not numeric or (len(distinct) <= FEW and (whole or repeated)):
        ticks = [(index + 0.5) / len(distinct) for index in range(len(distinct))]
        places = np.array([ticks[distinct.index(label)] for label in labels])
        return AxisScale(name, places, ticks, distinct, discrete=True, cells=len(distinct))
    return line_scale(name, finite_or_nan([np.nan if value is None else float(value) for value in values]), log=log)


def _sort_key(value: object) -> tuple[int, float, str]:
    """Return a key that sorts None first, then numbers, then words."""
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
    """Return the scale of numbers between the smallest and the largest of them, which have to differ.

    Args:
        name: Of the setting or metric.
        values: (trials,), NaN where there is none.
        log: Whether the scale is logarithmic, if all numbers are positive.
        format_tick: Returns the label of a tick.
    """
    low, high = np.nanmin(values), np.nanmax(values)
    log = log and low > 0
    ticks = [tick for tick in (log_ticks if log else _linear_ticks)(low, high) if low <= tick <= high]
    transform = np.log10 if log else np.asarray
    places = (transform(np.array([*values, *ticks])) - transform(low)) / (transform(high) - transform(low))
    return AxisScale(
        name, places[: len(values)], list(places[len(values) :]), [format_tick(tick) for tick in ticks], discrete=False
    )


def _linear_ticks(low: float, high: float) -> list[float]:
    return [float(f"{tick:.10g}") for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return ticks from `low` to `high` and just beyond: powers of ten, with 3 or with 2 and 5 times each if needed.

    On a range that has fewer than three of those, ticks are chosen as on a linear scale.
    """
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    for factors in ([1], [1, 3], [1, 2, 5]):
        ticks = [float(f"{factor}e{decade}") for decade in decades for factor in factors]
        if sum(low <= tick <= high for tick in ticks) >= 3:
            return ticks
    return _linear_ticks(low, high)
