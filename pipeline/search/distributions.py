"""Optuna distributions of settings, made from the lists and ranges of a search file."""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pipeline.config.search import RangeSpacing
from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import nearest, shown

# Of a range of floats; with more of them the range is as good as continuous
MAX_STEPS = 10_000


def parse_distribution(setting: str, entry: object) -> BaseDistribution:
    """Return the distribution of a setting's values.

    Args:
        setting: its name.
        entry: of the search file: a list is categorical, and `{low, high, step, log}` has the setting's type.

    Raises:
        UsageError: a value that the setting cannot have, or a list or a range that makes no sense.
    """
    if isinstance(entry, list):
        return _categorical(setting, entry)
    if isinstance(entry, dict):
        return _range(setting, entry)
    raise UsageError(f"{setting} must have a [list, of, values] or a range {{low: , high: }}, got {shown(entry)}")


def suggest(trial: optuna.Trial, setting: str, distribution: BaseDistribution) -> None:
    """Let a trial draw a setting's value."""
    match distribution:
        case CategoricalDistribution():
            trial.suggest_categorical(setting, distribution.choices)
        case IntDistribution():
            trial.suggest_int(
                setting, distribution.low, distribution.high, step=distribution.step, log=distribution.log
            )
        case FloatDistribution():
            trial.suggest_float(
                setting, distribution.low, distribution.high, step=distribution.step, log=distribution.log
            )


def coerce(setting: str, value: object) -> Any:
    """Return a value, which a search file holds as text, in the type of its setting."""
    return getattr(TrainingConfig.build({setting: value}), setting)


def values(distribution: BaseDistribution) -> Sequence[Any] | None:
    """Return all values of a distribution in their order, or None for a continuous range."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1, distribution.step)
    assert isinstance(distribution, FloatDistribution)
    if distribution.low == distribution.high:
        return [distribution.low]
    if distribution.step is None:
        return None
    low, step = _exact(distribution.low), _exact(distribution.step)
    return [float(low + position * step) for position in range(int((_exact(distribution.high) - low) / step) + 1)]


def sample(distribution: BaseDistribution, random: np.random.Generator) -> Any:
    """Return a random value, uniformly distributed; of a continuous log range, its logarithm is."""
    known = values(distribution)
    if known is not None:
        return known[int(random.integers(len(known)))]
    assert isinstance(distribution, FloatDistribution)
    low, high = distribution.low, distribution.high
    if distribution.log:
        # Rounding may lead out of the range
        return min(high, max(low, math.exp(random.uniform(math.log(low), math.log(high)))))
    return float(random.uniform(low, high))


def snap_to_step(distribution: BaseDistribution | None, value: Any) -> Any:
    """Return a drawn value without the rounding error of Optuna's steps: 0.15, not 0.15000000000000002."""
    if not isinstance(distribution, FloatDistribution) or distribution.step is None or not isinstance(value, float):
        return value
    step = _exact(distribution.step)
    return float(_exact(distribution.low) + round((_exact(value) - _exact(distribution.low)) / step) * step)


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether a distribution may draw a value, which has the type of its setting."""
    known = values(distribution)
    if known is not None:
        return value in known
    assert isinstance(distribution, FloatDistribution)
    return value is not None and distribution.low <= value <= distribution.high


def bounds(distribution: BaseDistribution) -> Sequence[Any]:
    """Return all choices, or the ends of a range."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return sorted({distribution.low, distribution.high})


def describe(distribution: BaseDistribution) -> str:
    """Return a distribution in words: `one of 1, 2, 4`, `4 to 12 by 2` or `0.0001 to 0.1, log`."""
    if isinstance(distribution, CategoricalDistribution):
        return f"one of {', '.join(str(choice).lower() for choice in distribution.choices)}"
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    step = f" by {distribution.step:g}" if distribution.step not in (None, 1) else ""
    return f"{distribution.low:g} to {distribution.high:g}{step}{', log' if distribution.log else ''}"


def _categorical(setting: str, entry: list[object]) -> CategoricalDistribution:
    """Return the distribution of a list of values."""
    if not entry:
        raise UsageError(f"{setting} must have one value or more, got an empty list")
    # A dictionary, since it keeps the order and finds a value quickly
    choices: dict[Any, None] = {}
    for value in entry:
        choice = coerce(setting, value)
        if choice in choices:
            raise UsageError(f"{setting} must have each value once, got {shown(value)} twice")
        choices[choice] = None
    return CategoricalDistribution(list(choices))


def _range(setting: str, entry: Mapping[str, object]) -> BaseDistribution:
    """Return the distribution of a range, whose type is that of its ends."""
    keys = ("low", "high", "step", "log")
    for key in entry:
        if key not in keys:
            raise UsageError(
                f"{setting}: a range has low, high, step, log and when, got {shown(key)}{nearest(str(key), keys)}"
            )
    if "low" not in entry or "high" not in entry:
        raise UsageError(f"{setting}: a range must have a low and a high, got {shown(dict(entry))}")
    low, high = coerce(setting, entry["low"]), coerce(setting, entry["high"])
    if not {type(low), type(high)} <= {int, float}:
        raise UsageError(f"{setting}: a range must go from number to number, got {shown(dict(entry))}; list the values")
    try:
        spacing = RangeSpacing.build({key: entry[key] for key in ("step", "log") if key in entry})
    except UsageError as error:
        raise UsageError(f"{setting}: {error}") from None
    _validate_range(setting, low, high, spacing)
    if isinstance(low, int):
        return IntDistribution(low, high, log=spacing.log, step=int(spacing.step or 1))
    return FloatDistribution(low, high, log=spacing.log, step=spacing.step)


def _validate_range(setting: str, low: float, high: float, spacing: RangeSpacing) -> None:
    """Raise UsageError for a range that Optuna would refuse or, worse, would round."""
    whole = isinstance(low, int)
    if low > high:
        raise UsageError(f"{setting}: low must be at most high, got {low} and {high}")
    if spacing.log and low <= 0:
        raise UsageError(f"{setting}: low must be above 0 in a log range, got {low}")
    if spacing.step is None:
        return
    if spacing.log:
        raise UsageError(f"{setting}: a log range has no step, got {spacing.step:g}; leave out one of the two")
    if whole and not spacing.step.is_integer():
        raise UsageError(f"{setting}: step must be a whole number, got {spacing.step:g}")
    span, step = _exact(high) - _exact(low), _exact(spacing.step)
    if not whole and span / step > MAX_STEPS:
        raise UsageError(
            f"{setting}: a range has at most {MAX_STEPS:,} steps, got {span / step:,.0f}; leave out the step"
        )
    if span % step:
        raise UsageError(f"{setting}: whole steps must lead from low to high, got {low} to {high} by {spacing.step:g}")


def _exact(number: float) -> Decimal:
    """Return a number as it was written: 0.3, not the nearest binary fraction."""
    return Decimal(str(number))
