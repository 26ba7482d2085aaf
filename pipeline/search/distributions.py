"""What a search file says of one setting, a list or a range, as an Optuna distribution of values that runs can hold."""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Field

from pipeline.config.base import Config
from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import nearest, shown

STEPS = 10_000  # of a range of floats; more are as good as none


class _Way(Config):
    """How a range goes from low to high."""

    step: float | None = Field(None, gt=0)
    log: bool = False


def distribution(setting: str, said: object) -> BaseDistribution:
    """The distribution of a setting's values: a list is categorical, `{low, high, step, log}` has the setting's type.

    Raises:
        UsageError: a value that no run could hold, or a list or a range that does not make sense.
    """
    if isinstance(said, list):
        return _choices(setting, said)
    if isinstance(said, dict):
        return _range(setting, said)
    raise UsageError(f"{setting} must have a [list, of, values] or a range {{low: , high: }}, got {shown(said)}")


def coerce(setting: str, value: object) -> Any:
    """A value as a run would hold it: `1e-3`, which PyYAML takes for text, is 0.001 where the setting is a number."""
    return getattr(TrainingConfig.build({setting: value}), setting)


def values(of: BaseDistribution) -> Sequence[Any] | None:
    """All values, in their order; None for a continuous range."""
    if isinstance(of, CategoricalDistribution):
        return of.choices
    if isinstance(of, IntDistribution):
        return range(of.low, of.high + 1, of.step)
    assert isinstance(of, FloatDistribution)
    if of.low == of.high:
        return [of.low]
    if of.step is None:
        return None
    low, step = _exact(of.low), _exact(of.step)
    return [float(low + position * step) for position in range(int((_exact(of.high) - low) / step) + 1)]


def sample(of: BaseDistribution, random: np.random.Generator) -> Any:
    """A value at random, every one as likely; of a continuous log range every magnitude."""
    known = values(of)
    if known is not None:
        return known[int(random.integers(len(known)))]
    assert isinstance(of, FloatDistribution)
    if of.log:
        return min(of.high, max(of.low, math.exp(random.uniform(math.log(of.low), math.log(of.high)))))
    return float(random.uniform(of.low, of.high))


def snap_to_step(of: BaseDistribution | None, value: Any) -> Any:
    """A drawn value, free of what Optuna's adding up of steps leaves: 0.15, not 0.15000000000000002."""
    if not isinstance(of, FloatDistribution) or of.step is None or not isinstance(value, float):
        return value
    step = _exact(of.step)
    return float(_exact(of.low) + round((_exact(value) - _exact(of.low)) / step) * step)


def contains(of: BaseDistribution, value: Any) -> bool:
    """Whether a value, as a run holds it, is one that may be drawn."""
    known = values(of)
    if known is not None:
        return value in known
    assert isinstance(of, FloatDistribution)
    return value is not None and of.low <= value <= of.high


def bounds(of: BaseDistribution) -> Sequence[Any]:
    """All choices, or the first and the last of a range."""
    if isinstance(of, CategoricalDistribution):
        return of.choices
    assert isinstance(of, IntDistribution | FloatDistribution)
    return sorted({of.low, of.high})


def phrase(of: BaseDistribution) -> str:
    """`one of 1, 2, 4`, `4 to 12 by 2` or `0.0001 to 0.1, log`."""
    if isinstance(of, CategoricalDistribution):
        return f"one of {', '.join(str(choice).lower() for choice in of.choices)}"
    assert isinstance(of, IntDistribution | FloatDistribution)
    step = f" by {of.step:g}" if of.step not in (None, 1) else ""
    return f"{of.low:g} to {of.high:g}{step}{', log' if of.log else ''}"


def _choices(setting: str, said: list[object]) -> CategoricalDistribution:
    if not said:
        raise UsageError(f"{setting} must have one value or more, got an empty list")
    choices: dict[Any, None] = {}  # ordered, and quick to look a value up in
    for value in said:
        choice = coerce(setting, value)
        if choice in choices:
            raise UsageError(f"{setting} must have each value once, got {shown(value)} twice")
        choices[choice] = None
    return CategoricalDistribution(list(choices))


def _range(setting: str, said: Mapping[str, object]) -> BaseDistribution:
    keys = ("low", "high", "step", "log")
    for key in said:
        if key not in keys:
            raise UsageError(
                f"{setting}: a range has low, high, step and log, got {shown(key)}{nearest(str(key), keys)}"
            )
    if "low" not in said or "high" not in said:
        raise UsageError(f"{setting}: a range must have a low and a high, got {shown(dict(said))}")
    low, high = coerce(setting, said["low"]), coerce(setting, said["high"])
    if not {type(low), type(high)} <= {int, float}:
        raise UsageError(f"{setting}: a range must go from number to number, got {shown(dict(said))}; list the values")
    try:
        way = _Way.build({key: said[key] for key in ("step", "log") if key in said})
    except UsageError as error:
        raise UsageError(f"{setting}: {error}") from None
    _check(setting, low, high, way)
    if isinstance(low, int):
        return IntDistribution(low, high, log=way.log, step=int(way.step or 1))
    return FloatDistribution(low, high, log=way.log, step=way.step)


def _check(setting: str, low: float, high: float, way: _Way) -> None:
    """Refuse what Optuna would raise for, or worse, would round off."""
    whole = isinstance(low, int)
    if low > high:
        raise UsageError(f"{setting}: low must be at most high, got {low} and {high}")
    if way.log and low <= 0:
        raise UsageError(f"{setting}: low must be above 0 in a log range, got {low}")
    if way.step is None:
        return
    if way.log:
        raise UsageError(f"{setting}: a log range has no step, got {way.step:g}; leave out one of the two")
    if whole and not way.step.is_integer():
        raise UsageError(f"{setting}: step must be a whole number, got {way.step:g}")
    span, step = _exact(high) - _exact(low), _exact(way.step)
    if not whole and span / step > STEPS:
        raise UsageError(f"{setting}: a range has at most {STEPS:,} steps, got {span / step:,.0f}; leave out the step")
    if span % step:
        raise UsageError(f"{setting}: whole steps must lead from low to high, got {low} to {high} by {way.step:g}")


def _exact(number: float) -> Decimal:
    """The number as it was written: 0.3, not the nearest binary fraction."""
    return Decimal(str(number))
