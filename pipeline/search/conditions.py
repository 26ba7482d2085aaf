"""Conditions of a search space: settings that are drawn only where others have been given certain values."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from optuna.distributions import BaseDistribution

from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import format_value, nearest, shown
from pipeline.search.distributions import coerce, contains, describe, values

Space: TypeAlias = Mapping[str, BaseDistribution]
# By setting: the values of others with which it is drawn; all of them must have one of theirs
Conditions: TypeAlias = Mapping[str, Mapping[str, tuple[Any, ...]]]


def parse_conditions(entries: Mapping[str, object], space: Space) -> dict[str, dict[str, tuple[Any, ...]]]:
    """Return the conditions of a space.

    Args:
        entries: by setting: `{other: value, ...}`, where each may also be a list of values.
        space: the distributions of all settings.

    Raises:
        UsageError: a condition names no other setting of the space, or a value that it never has; or settings depend on
            each other in a circle.
    """
    conditions = {setting: _parse_condition(setting, entry, space) for setting, entry in entries.items()}
    for setting in conditions:
        _refuse_circle((setting,), conditions)
    return conditions


def in_order(space: Space, conditions: Conditions) -> dict[str, BaseDistribution]:
    """Return a space in which each setting comes after those that its condition names, else in its order."""
    ordered: dict[str, BaseDistribution] = {}

    def add(setting: str) -> None:
        for other in conditions.get(setting, {}):
            add(other)
        ordered[setting] = space[setting]

    for setting in space:
        add(setting)
    return ordered


def is_drawn(setting: str, params: Mapping[str, Any], conditions: Conditions) -> bool:
    """Return whether a setting is drawn beside these drawn values, which hold all that its condition names."""
    return all(other in params and params[other] in allowed for other, allowed in conditions.get(setting, {}).items())


def with_ancestors(settings: Iterable[str], conditions: Conditions) -> set[str]:
    """Return settings with all on which it depends whether they are drawn."""
    every = set(settings)
    return every.union(*(with_ancestors(conditions[setting], conditions) for setting in every if setting in conditions))


def combinations(choices: Mapping[str, Sequence[Any]], conditions: Conditions) -> Iterator[dict[str, Any]]:
    """Yield each configuration of these choices once, without the settings that are not drawn in it.

    Args:
        choices: values by setting, in the order of `in_order`, with all that the conditions of these settings name.
        conditions: of the space.
    """
    settings = list(choices)

    def extend(params: dict[str, Any], position: int) -> Iterator[dict[str, Any]]:
        if position == len(settings):
            yield params
            return
        setting = settings[position]
        drawn = choices[setting] if is_drawn(setting, params, conditions) else None
        for more in [{}] if drawn is None else ({setting: value} for value in drawn):
            yield from extend(params | more, position + 1)

    yield from extend({}, 0)


def count_configurations(space: Space, conditions: Conditions) -> int | None:
    """Return the number of configurations of a space, in the order of `in_order`; None if a range is continuous."""
    known = {setting: values(distribution) for setting, distribution in space.items()}
    if any(choices is None for choices in known.values()):
        return None
    sizes = {setting: len(choices) for setting, choices in known.items() if choices is not None}
    named = with_ancestors((other for condition in conditions.values() for other in condition), conditions)
    parents = {setting: choices or () for setting, choices in known.items() if setting in named}
    return sum(
        math.prod(
            size for setting, size in sizes.items() if setting not in named and is_drawn(setting, params, conditions)
        )
        for params in combinations(parents, conditions)
    )


def describe_condition(setting: str, conditions: Conditions) -> str:
    """Return a condition in words, `when optimizer is muon`, or nothing where there is none."""
    parts = [
        f"{other} is {' or '.join(map(format_value, allowed))}"
        for other, allowed in conditions.get(setting, {}).items()
    ]
    return f"when {' and '.join(parts)}" if parts else ""


def _parse_condition(setting: str, entry: object, space: Space) -> dict[str, tuple[Any, ...]]:
    """Return the condition of one setting."""
    if not isinstance(entry, dict) or not entry:
        raise UsageError(f"{setting}: when must be {{other setting: its value or values}}, got {shown(entry)}")
    condition = {}
    for other, allowed in entry.items():
        if other == setting or other not in space:
            near = nearest(str(other), [name for name in space if name != setting])
            raise UsageError(f"{setting}: when must name other settings of the space, got {shown(other)}{near}")
        if values(space[other]) is None:
            raise UsageError(f"{setting}: when must name settings with single values, got {other}; give it a step")
        condition[other] = tuple(
            coerce(other, value) for value in (allowed if isinstance(allowed, list) else [allowed])
        )
        for value in condition[other]:
            if not contains(space[other], value):
                known = describe(space[other])
                raise UsageError(f"{setting}: when must give {other} values of the space, {known}, got {shown(value)}")
        if not condition[other]:
            raise UsageError(f"{setting}: when must give {other} a value or more, got an empty list")
    return condition


def _refuse_circle(path: tuple[str, ...], conditions: Conditions) -> None:
    """Raise UsageError if a setting depends on itself; the path leads from it to one on which it depends."""
    for other in conditions.get(path[-1], {}):
        if other == path[0]:
            raise UsageError(f"{path[0]}: when must not depend on the setting itself: {' > '.join([*path, other])}")
        if other not in path:
            _refuse_circle((*path, other), conditions)
