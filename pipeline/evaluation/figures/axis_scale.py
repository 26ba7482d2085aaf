"""The scale of an axis for a searched setting: numbers stand to scale, words and booleans have a place each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from numbers import Real
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.evaluation.figures.style import spans_decades
from pipeline.runtime.text import format_value

FEW = 12  # distinct numbers at most that get a tick each
RANGES = 8  # equal parts of an axis of many numbers
OFF_ROOM = 0.15  # of an axis of numbers, on its left, for each label that is no number
# What a table of trials has for a setting that was not drawn in a trial
NOT_DRAWN = "not drawn"
OFF = ("none", NOT_DRAWN)


class SettingRange(NamedTuple):
    """The values that a search may try of a setting."""

    values: Sequence[object] | None  # all of them; None if they are too many
    low: float = float("nan")  # ends of a range
    high: float = float("nan")
    log: bool = False  # drawn on a logarithmic scale


Space = Mapping[str, SettingRange]  # by setting; one that is missing has the values that were tried


@dataclass(frozen=True)
class AxisScale:
    """The places of a setting's values on an axis from 0 to 1, and its ticks."""

    name: str
    places: NDArray  # (trials,)
    ticks: list[float]
    labels: list[str]
    categorical: bool = False
    few: bool = True  # each value has a tick, untried ones too

    @property
    def cells(self) -> int:
        """Return the number of cells of a heat map: one for each of few values, or else equal parts of the axis."""
        return len(self.ticks) if self.few else RANGES

    def spread(self) -> NDArray:
        """Return the places, with the trials of one category side by side around its tick; numbers stay in place."""
        if not self.categorical:
            return self.places
        trials = pd.Series(self.places).groupby(self.places)
        position, number = trials.cumcount().to_numpy(), trials.transform("size").to_numpy()
        offset = (position - (number - 1) / 2) / np.maximum(number, 4)  # -0.5..0.5
        return self.places + 0.5 * offset / self.cells

    def cell(self) -> NDArray:
        """Return the cell of each trial, counted from 0."""
        if self.few:
            return np.abs(self.places[:, None] - np.array(self.ticks)).argmin(axis=1)
        return np.minimum(np.floor(self.places * RANGES), RANGES - 1).astype(int)

    def cell_ticks(self) -> list[float]:
        """Return the ticks on an axis where cell n is centred on n."""
        return [*range(len(self.ticks))] if self.few else [tick * RANGES - 0.5 for tick in self.ticks]


def setting_names(trials: pd.DataFrame) -> list[str]:
    """Return the searched settings, from the columns `params.<name>`."""
    return [name.removeprefix("params.") for name in trials.columns if name.startswith("params.")]


def setting_scales(trials: pd.DataFrame, space: Space) -> list[AxisScale]:
    """Return a scale for every searched setting."""
    return [setting_scale(trials, name, space) for name in setting_names(trials)]


def setting_scale(trials: pd.DataFrame, name: str, space: Space) -> AxisScale:
    """Return the scale of one setting, with room for the values that no trial has tried.

    Words and booleans are categories. Numbers stand to scale: on a logarithmic one if the space says so, if the ratio
    from one to the next is always about the same, or if they span more than a factor of 20. `none` and `not drawn`
    beside numbers stand apart on the left.
    """
    tried = trials[f"params.{name}"].tolist()
    span = space.get(name) or SettingRange(None)
    possible = {format_value(value): value for value in [*(span.values or ()), *tried]}
    labels = sorted(possible, key=lambda label: _sort_key(possible[label]))
    off = [label for label in labels if label in OFF]
    numbers = [label for label in labels if label not in OFF]
    if not numbers or not all(_is_number(possible[label]) for label in numbers):
        ticks = [(index + 0.5) / len(labels) for index in range(len(labels))]
        places = np.array([ticks[labels.index(format_value(value))] for value in tried])
        return AxisScale(name, places, ticks, labels, categorical=True)
    known = np.array([float(possible[label]) for label in numbers])
    few = _are_few(known, span, len(tried))
    log = known.min() > 0 and (span.log or (few and _is_geometric(known)) or spans_decades(known))
    values = np.array([np.nan if format_value(value) in OFF else float(value) for value in tried])
    # the tried ones too, as labels are rounded
    everything = [*known, *values, span.low, span.high]
    ends = (np.nanmin(everything), np.nanmax(everything))
    if not few:
        known = np.array(_ticks(*ends, log=log))
        numbers = [format_value(value) for value in known]
    places = _places(np.array([*values, *known]), ends, log=log)
    room = OFF_ROOM * len(off)
    places = room + (1 - room) * places
    off_places = [OFF_ROOM * position for position in range(len(off))]
    for trial in np.flatnonzero(np.isnan(values)):
        places[trial] = off_places[off.index(format_value(tried[trial]))]
    return AxisScale(name, places[: len(values)], [*off_places, *places[len(values) :]], [*off, *numbers], few=few)


def _are_few(known: NDArray, span: SettingRange, trials: int) -> bool:
    """Return whether each number gets a tick: all that there are, or what was tried if it is whole or was repeated."""
    if span.values is not None or span.low == span.low:
        return span.values is not None and len(known) <= FEW
    return len(known) <= FEW and (bool((known % 1 == 0).all()) or 2 * len(known) <= max(trials, 2))


def _is_geometric(numbers: NDArray) -> bool:
    """Return whether three or more numbers in ascending order are about equally far apart on a log scale."""
    steps = np.diff(np.log(numbers))
    return len(steps) > 1 and bool(steps.max() < 1.25 * steps.min())


def _places(values: NDArray, ends: tuple[float, float], *, log: bool) -> NDArray:
    """Return where values lie between the ends of an axis, 0 to 1; in the middle if the ends are equal."""
    low, high = np.log10(ends) if log else ends
    if low == high:
        return np.where(np.isnan(values), np.nan, 0.5)
    return ((np.log10(values) if log else values) - low) / (high - low)


def _ticks(low: float, high: float, *, log: bool) -> list[float]:
    if low == high:
        return [low]
    return [tick for tick in (log_ticks if log else linear_ticks)(low, high) if low <= tick <= high]


def _sort_key(value: object) -> tuple[int, float, str]:
    """Return a key that sorts `none` and `not drawn` first, then numbers, then words."""
    label = format_value(value)
    if label in OFF:
        return 0, OFF.index(label), ""
    return (1, float(value), "") if _is_number(value) else (2, 0, label)  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    # NumPy's booleans are no numbers, Python's are
    return isinstance(value, Real) and type(value).__name__ != "bool"


def linear_ticks(low: float, high: float) -> list[float]:
    """Return about five round ticks from `low` to `high` and just beyond."""
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
    return linear_ticks(low, high)
