"""What a search file says: a recipe, the space around it, what to try first, and any setting; checked, and typed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution

from pipeline.config.search import SearchFile, SearchFlags
from pipeline.config.training import CHANGE_NO_RESULT, TrainingConfig
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import nearest, shown
from pipeline.search.distributions import coerce, contains, distribution, phrase
from pipeline.search.storage_url import validate_storage_url

# Trials are compared on one split of one set of images, so none of these can differ between them.
OF_THE_DATA = ("dataset", "image_size", "validation_fraction", "train_examples", "seed")


class SearchDefinition(NamedTuple):
    """A file's content."""

    path: Path
    recipe: str
    settings: dict[str, object]  # the recipe's, under the file's own
    space: dict[str, BaseDistribution]
    enqueue: tuple[dict[str, Any], ...]


def read_definition(file: SearchFile) -> SearchDefinition:
    """Return the definition that a search's file holds, with its space checked.

    Raises:
        UsageError: with the path of the file and what is wrong with it.
    """
    try:
        space = _space(file.space)
        for setting in space:
            if setting in file.own:
                raise UsageError(f"{setting} must stand in the space or beside it, got both")
        storage = SearchFlags.build(file.settings).storage
        if storage is not None:
            validate_storage_url(storage, {})
        return SearchDefinition(file.path, file.recipe, file.settings, space, _enqueue(file.enqueue, space))
    except UsageError as error:
        raise UsageError(f"{file.path.absolute()}: {error}") from None


def _space(said: Mapping[str, object]) -> dict[str, BaseDistribution]:
    for setting in said:
        if setting in OF_THE_DATA:
            names = ", ".join(OF_THE_DATA)
            raise UsageError(f"space must leave the images and their split alone ({names}), got {setting}")
        if setting in CHANGE_NO_RESULT:
            raise UsageError(f"space must name settings that change a result, got {setting}: say it beside the space")
        if setting not in TrainingConfig.model_fields:
            near = nearest(str(setting), TrainingConfig.model_fields)
            raise UsageError(f"space must name settings of a run, got {shown(setting)}{near}")
    try:
        return {setting: distribution(setting, drawn) for setting, drawn in said.items()}
    except UsageError as error:
        raise UsageError(f"space: {error}") from None


def _enqueue(said: object, space: Mapping[str, BaseDistribution]) -> tuple[dict[str, Any], ...]:
    if not isinstance(said, list) or not all(isinstance(params, dict) and params for params in said):
        raise UsageError(f"enqueue must be a list of {{setting: value}}, got {shown(said)}")
    found: dict[frozenset[tuple[str, Any]], dict[str, Any]] = {}
    for params in said:
        for setting in params:
            if setting not in space:
                near = nearest(str(setting), space)
                raise UsageError(f"enqueue must name settings of the space, got {shown(setting)}{near}")
        try:
            exact = {setting: coerce(setting, value) for setting, value in params.items()}
        except UsageError as error:
            raise UsageError(f"enqueue: {error}") from None
        for setting, value in exact.items():
            if not contains(space[setting], value):
                raise UsageError(
                    f"enqueue must lie in the space, where {setting} is {phrase(space[setting])}, got {shown(value)}"
                )
        if (key := frozenset(exact.items())) in found:
            raise UsageError(f"enqueue must have each configuration once, got {shown(params)} twice")
        found[key] = exact
    return tuple(found.values())
