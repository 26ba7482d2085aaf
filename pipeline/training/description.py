"""How a training run presents itself in MLflow: its name, which says what is special in it, and its description."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.config.training import RuntimeConfig, TrainingConfig
from pipeline.data.dataset import Dataset
from pipeline.runtime.tables import markdown_cell, markdown_code, markdown_facts
from pipeline.runtime.text import format_duration, one_line

CONFIG_FILE = "config.yaml"
NAMED_CHANGES = 4
REFIT = "trained on training and validation images"  # what is special in a run with `refit`
WEIGHTS_CHARACTERS = 20  # of the model or the file that the weights come from, or that teaches
SHORT = {"learning_rate": "lr", "weight_decay": "wd"}


class Change(NamedTuple):
    """A setting that differs from the recipe's, as text."""

    value: str
    of_recipe: str


def changes_to_recipe(config: TrainingConfig, recipe: TrainingConfig) -> dict[str, Change]:
    """Return the settings of a run that differ from its recipe's, by name."""
    values = {name: Change(config.text(name), recipe.text(name)) for name in TrainingConfig.model_fields}
    return {name: change for name, change in values.items() if change.value != change.of_recipe}


def parse_changes(text: str) -> dict[str, Change]:
    """Return what `json.dumps` has made of the changes of a run; none if it is something else."""
    try:
        return {str(name): Change(str(value), str(of_recipe)) for name, (value, of_recipe) in json.loads(text).items()}
    except (AttributeError, TypeError, ValueError):
        return {}


def run_name(recipe: str, changes: Mapping[str, Change], dataset: Dataset, *, refit: bool = False) -> str:
    """Return a run's name: its recipe, and the changes that decide its result: `digits depth=6 lr=0.1, refit`.

    Args:
        recipe: Name or path. That of an earlier run's config says nothing as a name; the data's then takes its place.
        changes: Settings that differ from the recipe's.
        dataset: The run's data.
        refit: Whether it trains on the validation images too, which its name says also where the recipe sets it.
    """
    subject = dataset.name if Path(recipe).name == CONFIG_FILE else Path(recipe).stem
    values = {SHORT.get(name, name): change.value for name, change in changes.items() if _is_named(name)}
    if "dataset" in values:
        values["dataset"] = dataset.name
    for name in {"weights_from", "teacher"} & values.keys():
        values[name] = values[name].split("/")[-1][:WEIGHTS_CHARACTERS]
    words = [f"{name}={value}" for name, value in values.items()]
    more = [f"+{len(words) - NAMED_CHANGES} more"] if len(words) > NAMED_CHANGES else []
    return one_line(" ".join([subject, *words[:NAMED_CHANGES], *more]), most=120) + (", refit" if refit else "")


def run_description(
    recipe: str,
    changes: Mapping[str, Change],
    dataset: Dataset,
    *,
    device: str,
    result: str,
    commands: Mapping[str, str],
    seconds: float | None = None,
) -> str:
    """Return the description at the top of MLflow's page of a run, a table in Markdown.

    Args:
        recipe: Name or path.
        changes: Settings that differ from the recipe's.
        dataset: The run's data.
        device: On which it trains, in words.
        result: What is known of its result.
        commands: What can be done with the run, by what it is for.
        seconds: How long it took.
    """
    settings = ", ".join(
        f"`{name}` {_cell(change.value)} instead of {_cell(change.of_recipe)}" for name, change in changes.items()
    )
    rows = {
        "result": _cell(result),
        "recipe": f"{_cell(recipe)}, {settings or 'as it is'}",
        "data": f"{_cell(dataset.name)}: {describe_splits(dataset)}, {len(dataset.classes)} classes",
        "device": _cell(device),
    }
    if seconds is not None:
        rows["time"] = format_duration(seconds)
    return markdown_facts(rows | {what: markdown_code(command) for what, command in commands.items()})


def describe_splits(dataset: Dataset) -> str:
    """Return how many images each split has, in words."""
    train, validation, test = len(dataset.train), len(dataset.validation), len(dataset.test)
    if dataset.folds:
        return f"{train + validation:,} images in {len(dataset.folds)} folds and {test:,} test images"
    if not validation:
        return f"{train:,} training images, those for validation among them, and {test:,} test images"
    return f"{train:,} training, {validation:,} validation and {test:,} test images"


def _is_named(setting: str) -> bool:
    """Return whether a setting decides the result; `refit` has words of its own."""
    return setting != "refit" and (setting not in RuntimeConfig.model_fields or setting == "precision")


def _cell(text: str) -> str:
    """Return foreign text as a part of a cell of a table, in which it is no markup."""
    return markdown_cell(one_line(text))
