"""What a search file says: a recipe, the space around it, what to try first, and any setting; checked, and typed."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from optuna.distributions import BaseDistribution
from pydantic import Field

from pipeline import settings_file, study_storage
from pipeline.config import CHANGE_NO_RESULT, Config, read_recipe
from pipeline.distributions import contains, distribution, held, phrase
from pipeline.errors import UsageError
from pipeline.settings import Settings, nearest, shown

SEARCHES = Path(__file__).parent.parent / "experiments" / "searches"
PARTS = ("recipe", "space", "enqueue")  # of a file; every other line of it is a setting
# Trials are compared on one split of one set of images, so none of these can differ between them.
OF_THE_DATA = ("dataset", "image_size", "validation_fraction", "train_examples", "seed")


class SearchSettings(Settings):
    """What a search may be told beside the settings of its runs, by flag or in its file."""

    trials: int = Field(50, ge=1, le=100_000, description="trials that the study is to have, completed or pruned")
    hours: float | None = Field(None, gt=0, le=10_000, description="begin no trial after so many hours of searching")
    trial_minutes: float | None = Field(None, gt=0, le=100_000, description="stop a trial after so many minutes")

    metric: tuple[Literal["val_accuracy", "val_loss", "parameters", "epoch_seconds", "latency_ms"], ...] = Field(
        ("val_accuracy",),
        min_length=1,
        max_length=2,
        description="what to better: accuracy upwards, all else downwards; two give a Pareto front, without pruning",
    )
    sampler: Literal["tpe", "random", "grid"] = Field("tpe", description="how the next trial's settings are chosen")
    pruner: Literal["median", "none"] = Field(
        "median", description="stop a trial that is worse than the median of the others at the same epoch, or never"
    )
    pruner_trials: int = Field(5, ge=1, le=100_000, description="finished trials before the first may be pruned")
    pruner_epochs: int | None = Field(
        None, ge=0, le=100_000, description="epochs that every trial gets before it may be pruned; none: half of them"
    )

    final_top: int = Field(3, ge=0, le=1000, description="retrain so many of the best configurations; 0: none")
    final_seeds: int = Field(3, ge=1, le=1000, description="seeds that each of these is retrained with")

    workers: int | None = Field(
        None, ge=1, le=4096, description="trials at a time where there is no GPU; none: as many as the cores can feed"
    )
    trials_per_gpu: int = Field(1, ge=1, le=64, description="trials at a time on each GPU")
    cluster: str | None = Field(
        None,
        pattern=r"^(auto|local|ray://.+)$",
        description="train on Ray: auto (the cluster of this node), ray://host:port, or local; none: without Ray",
    )
    storage: str | None = Field(
        None, min_length=1, description="Optuna URL without a password; none: OPTUNA_STORAGE, or else a file here"
    )
    drivers: Literal["one", "shared"] = Field(
        "one", description="shared: this command may run many times at once, on PostgreSQL, and all share the budget"
    )
    study: str | None = Field(
        None, min_length=1, max_length=200, description="the study's name; none: the search's, and what it depends on"
    )


class Flags(SearchSettings, Config):
    """Both kinds of settings, as they stand side by side on the command line and in a search file."""


class SearchFile(NamedTuple):
    """A file's content."""

    path: Path
    recipe: str
    settings: dict[str, object]  # the recipe's, under the file's own
    space: dict[str, BaseDistribution]
    enqueue: tuple[dict[str, Any], ...]


def read(name: str) -> SearchFile:
    """A file of experiments/searches/ by its name, or any YAML file by its path.

    Raises:
        UsageError: whatever is wrong with it, after its path.
    """
    path = settings_file.find(name, folder=SEARCHES, kind="search")
    said = settings_file.read(path, kind="search")
    try:
        settings = {key: value for key, value in said.items() if key not in PARTS}
        _refuse_unknown(settings)
        space = _space(said.get("space"))
        for setting in settings:
            if setting in space:
                raise UsageError(f"{setting} must stand in the space or beside it, got both")
        settings = _recipe(said.get("recipe")) | settings
        storage = Flags.build(settings).storage
        if storage is not None:
            study_storage.check(storage, {})
        return SearchFile(path, said["recipe"], settings, space, _enqueue(said.get("enqueue", []), space))
    except UsageError as error:
        raise UsageError(f"{path.absolute()}: {error}") from None


def searches() -> list[str]:
    """Names of the searches that come with the project."""
    return settings_file.names(SEARCHES)


def _refuse_unknown(settings: Iterable[str]) -> None:
    for setting in settings:
        if setting not in Flags.model_fields:
            raise UsageError(f"unknown setting {shown(setting)}{nearest(setting, [*PARTS, *Flags.model_fields])}")


def _recipe(name: object) -> dict[str, object]:
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
        if setting not in Config.model_fields:
            near = nearest(str(setting), Config.model_fields)
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
            exact = {setting: held(setting, value) for setting, value in params.items()}
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
