"""Recipes, files of a training run's settings, and the command line of `train`, which names one."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from pipeline.config import yaml_file
from pipeline.config.arguments import NOTIFY_FLAGS, parse_arguments, take_notify_flags
from pipeline.config.training import BUILTIN_DATASETS, TrainingConfig
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import printable

RECIPES = Path(__file__).parents[2] / "experiments" / "recipes"
RESUME = "a run's id, or latest: resume it after its last finished epoch, with its own settings"

TRAIN = """\
Train one ConvMixer, and log the run to MLflow.

RECIPE is a YAML file of settings: one of experiments/recipes/ by its name, or
the path of any other. A flag overrides the recipe, and the recipe overrides
the default.

The run's settings, metrics, figures and model go to the store that
MLFLOW_TRACKING_URI names, by default mlflow.db in this folder.

examples:
  convmixer train digits --depth 6
  convmixer train --resume latest
"""


class TrainCommand(NamedTuple):
    """The parsed command line of `train`."""

    recipe: str
    config: TrainingConfig  # default < recipe < flag; a resumed run has its own instead
    recipe_config: TrainingConfig  # default < recipe
    overrides: dict[str, str]  # the flags alone
    resume: str | None  # the run to resume
    notify: dict[str, str]  # flags that say who is told what happens


def parse_training(arguments: Sequence[str]) -> TrainCommand:
    """Return the recipe's name and the settings of a run.

    With --resume the recipe is not read, as MLproject names one even where the user did not.

    Raises:
        UsageError: an unknown recipe or setting, or a value that breaks its setting's rule.
    """
    recipe = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    resumes = any(word == "--resume" or word.startswith("--resume=") for word in arguments)
    settings = read_recipe(recipe) if recipe and not resumes else {}
    recipe_config = TrainingConfig.build(settings)
    overrides = parse_arguments(
        arguments,
        command="train",
        description=TRAIN,
        settings=recipe_config,
        origin=Path(recipe).stem if settings else "default",
        positional=("recipe", yaml_file.choices(RECIPES)),
        other_flags={"resume": ("RUN", RESUME), **NOTIFY_FLAGS},
    )
    notify = take_notify_flags(overrides)
    resume = overrides.pop("resume", None)
    overrides.pop("recipe", None)
    if not recipe and resume is None:
        raise UsageError(f"name the recipe first: {yaml_file.choices(RECIPES)}")
    config = TrainingConfig.build({**settings, **overrides})
    return TrainCommand(printable(recipe), config, recipe_config, overrides, resume, notify)


def read_recipe(recipe: str) -> dict[str, object]:
    """Return the settings of a recipe, after checking them.

    A recipe may begin with `recipe: NAME`: it then holds what differs from that one.

    Args:
        recipe: the name of a file of experiments/recipes/, or the path of a YAML file.

    Raises:
        UsageError: there is no such file, a setting in it is unknown or breaks its rule, or recipes extend each other.
    """
    return _read_recipe(recipe, extended_by=())


def _read_recipe(recipe: str, *, extended_by: Sequence[Path]) -> dict[str, object]:
    if recipe in BUILTIN_DATASETS and recipe not in yaml_file.names(RECIPES):
        raise UsageError(
            f"recipe must be one of {yaml_file.choices(RECIPES)}, got {recipe}, which is a data set: "
            f"name a recipe, and dataset={recipe}"
        )
    path = yaml_file.find(recipe, folder=RECIPES, kind="recipe").absolute()
    if path in extended_by:
        raise UsageError(f"a recipe must not extend itself: {' > '.join(map(str, [*extended_by, path]))}")
    settings = yaml_file.read_file(path, kind="recipe")
    try:
        if base := settings.pop("recipe", None):
            settings = {**_read_recipe(str(base), extended_by=[*extended_by, path]), **settings}
        TrainingConfig.build(settings)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return settings


def to_yaml(config: TrainingConfig) -> str:
    """Return all settings as YAML, which `read_recipe` reads back to the same settings."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def from_yaml(path: Path) -> TrainingConfig:
    """Return the settings in a file that `to_yaml` has written.

    Raises:
        UsageError: it cannot be read, or is no such file.
    """
    return TrainingConfig.build(yaml_file.read_file(path, kind="recipe"))
