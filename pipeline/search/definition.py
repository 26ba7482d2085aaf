"""What a search file says: a recipe, the space around it, what to try first, and any setting; checked, and typed."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution

from pipeline.config import yaml_file
from pipeline.config.search import SearchFlags
from pipeline.config.training import CHANGE_NO_RESULT, TrainingConfig, read_recipe
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import nearest, shown
from pipeline.search.distributions import coerce, contains, distribution, phrase
from pipeline.search.storage_url import validate_storage_url

SEARCHES = Path(__file__).parents[2] / "experiments" / "searches"
PARTS = ("recipe", "space", "enqueue")  # of a file; every other line of it is a setting
# Trials are compared on one split of one set of images, so none of these can differ between them.
OF_THE_DATA = ("dataset", "image_size", "validation_fraction", "train_examples", "seed")


class SearchDefinition(NamedTuple):
    """A file's content."""

    path: Path
    recipe: str
    settings: dict[str, object]  # the recipe's, under the file's own
    space: dict[str, BaseDistribution]
    enqueue: tuple[dict[str, Any], ...]


def read_definition(name: str) -> SearchDefinition:
    """A file of experiments/searches/ by its name, or any YAML file by its path.

    Raises:
        UsageError: whatever is wrong with it, after its path.
    """
    path = yaml_file.find(name, folder=SEARCHES, kind="search")
    said = yaml_file.read_file(path, kind="search")
    try:
        settings = {key: value for key, value in said.items() if key not in PARTS}
        _refuse_unknown(settings)
        space = _space(said.get("space"))
        for setting in settings:
            if setting in space:
                raise UsageError(f"{setting} must stand in the space or beside it, got both")
        settings = _recipe_of(said.get("recipe")) | settings
        storage = SearchFlags.build(settings).storage
        if storage is not None:
            validate_storage_url(storage, {})
        return SearchDefinition(path, said["recipe"], settings, space, _enqueue(said.get("enqueue", []), space))
    except UsageError as error:
        raise UsageError(f"{path.absolute()}: {error}") from None


def searches() -> list[str]:
    """Names of the searches that come with the project."""
    return yaml_file.names(SEARCHES)


def _refuse_unknown(settings: Iterable[str]) -> None:
    for setting in settings:
        if setting not in SearchFlags.model_fields:
            raise UsageError(f"unknown setting {shown(setting)}{nearest(setting, [*PARTS, *SearchFlags.model_fields])}")


def _recipe_of(name: object) -> dict[str, object]:
    if not isinstance(name, str):
        raise UsageError(f"recipe must name the recipe that the search starts from, got {shown(name)}")
    return read_recipe(name)


def _space(said: object) -> dict[str, BaseDistribution]:
    if not isinstance(said, dict) or not said:
        raise UsageError(f"space must have a line for each setting that is searched, got {shown(said)}")
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
