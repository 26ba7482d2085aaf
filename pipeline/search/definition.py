"""The definition of a search: the content of its file, with the space and the enqueued configurations parsed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution

from pipeline.config.search import SearchFile, SearchFlags
from pipeline.config.training import CHANGE_NO_RESULT, TrainingConfig
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import nearest, shown
from pipeline.search.conditions import Conditions, describe_condition, in_order, is_drawn, parse_conditions
from pipeline.search.distributions import coerce, contains, describe, parse_distribution
from pipeline.search.storage_url import validate_storage_url

# Settings of the images and their split. Trials are compared on one split of one set of images, so that none of these
# can differ between them.
DATA_SETTINGS = ("dataset", "image_size", "resize", "validation_fraction", "train_examples", "folds", "refit", "seed")


class SearchDefinition(NamedTuple):
    """The content of a search's file."""

    path: Path
    recipe: str
    settings: dict[str, object]  # the recipe's, overridden by the file's own
    space: dict[str, BaseDistribution]  # each setting after those that its condition names
    conditions: Conditions
    enqueue: tuple[dict[str, Any], ...]


def read_definition(file: SearchFile) -> SearchDefinition:
    """Return the definition that a search's file holds, with its space checked.

    Raises:
        UsageError: with the path of the file and what is wrong with it.
    """
    try:
        space, conditions = _parse_space(file.space)
        for setting in space:
            if setting in file.own:
                raise UsageError(f"{setting} must stand in the space or beside it, got both")
        storage = SearchFlags.build(file.settings).storage
        if storage is not None:
            validate_storage_url(storage, {})
        enqueue = _parse_enqueue(file.enqueue, space, conditions)
        return SearchDefinition(file.path, file.recipe, file.settings, space, conditions, enqueue)
    except UsageError as error:
        raise UsageError(f"{file.path.absolute()}: {error}") from None


def _parse_space(entries: Mapping[str, object]) -> tuple[dict[str, BaseDistribution], Conditions]:
    """Return the distribution of each setting in the space, and the conditions of those that have one."""
    for setting in entries:
        if setting in DATA_SETTINGS:
            names = ", ".join(DATA_SETTINGS)
            raise UsageError(f"space must leave the images and their split alone ({names}), got {setting}")
        if setting == "monitor":
            raise UsageError("space must leave monitor alone, by which trials are compared: set metric beside it")
        if setting in CHANGE_NO_RESULT:
            raise UsageError(f"space must name settings that change a result, got {setting}: set it beside the space")
        if setting not in TrainingConfig.model_fields:
            near = nearest(str(setting), TrainingConfig.model_fields)
            raise UsageError(f"space must name settings of a run, got {shown(setting)}{near}")
    try:
        space = {setting: parse_distribution(setting, _unconditional(entry)) for setting, entry in entries.items()}
        conditional = {
            name: entry["when"] for name, entry in entries.items() if isinstance(entry, dict) and "when" in entry
        }
        conditions = parse_conditions(conditional, space)
    except UsageError as error:
        raise UsageError(f"space: {error}") from None
    return in_order(space, conditions), conditions


def _unconditional(entry: object) -> object:
    """Return the entry of a setting without its condition: a list, or a range."""
    if not isinstance(entry, dict):
        return entry
    rest = {key: value for key, value in entry.items() if key != "when"}
    return rest["values"] if set(rest) == {"values"} else rest


def _parse_enqueue(
    entries: object, space: Mapping[str, BaseDistribution], conditions: Conditions
) -> tuple[dict[str, Any], ...]:
    """Return the configurations to try first, each of which may leave settings of the space out."""
    if not isinstance(entries, list) or not all(isinstance(params, dict) and params for params in entries):
        raise UsageError(f"enqueue must be a list of {{setting: value}}, got {shown(entries)}")
    configurations: dict[frozenset[tuple[str, Any]], dict[str, Any]] = {}
    for params in entries:
        for setting in params:
            if setting not in space:
                near = nearest(str(setting), space)
                raise UsageError(f"enqueue must name settings of the space, got {shown(setting)}{near}")
        try:
            typed = {setting: coerce(setting, value) for setting, value in params.items()}
        except UsageError as error:
            raise UsageError(f"enqueue: {error}") from None
        for setting, value in typed.items():
            if not contains(space[setting], value):
                raise UsageError(
                    f"enqueue must lie in the space, where {setting} is {describe(space[setting])}, got {shown(value)}"
                )
        for setting in typed:
            # The values that it leaves out are drawn, and may be those that the condition wants
            given = {other: typed.get(other, allowed[0]) for other, allowed in conditions.get(setting, {}).items()}
            if not is_drawn(setting, given, conditions):
                when = describe_condition(setting, conditions)
                raise UsageError(f"enqueue must have {setting} only {when}, got {shown(params)}")
        if (key := frozenset(typed.items())) in configurations:
            raise UsageError(f"enqueue must have each configuration once, got {shown(params)} twice")
        configurations[key] = typed
    return tuple(configurations.values())
