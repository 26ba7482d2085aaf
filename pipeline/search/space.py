"""A search: every setting of its trials, held or drawn, the budget, and whether the images can be trained with them."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from optuna.distributions import BaseDistribution, distribution_to_json

from pipeline.config import training
from pipeline.config.search import SearchCommand, SearchConfig, SearchFlags, parse_search_command
from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import printable
from pipeline.search import definition
from pipeline.search.distributions import bounds, sample, snap_to_step, values
from pipeline.search.storage_url import validate_storage_url

# A study goes on where one of these has changed. Any other change makes it a new one.
BUDGETS_AND_PLACES = frozenset(
    "trials hours trial_minutes final_top final_seeds workers trials_per_gpu cluster storage drivers study".split()
)
OF_THE_FIT = (
    "patch_size",
    "kernel_size",
    "batch_size",
    "translation",
    "cutout",
)  # what config.check judges against the images
GRID = 10_000  # Optuna writes a grid out in memory
STUDY_NAME = 100  # characters of a file's name, which names a study and its run


@dataclass(frozen=True)
class SearchSpec:
    """A search that has been checked, as far as that can be done without the images."""

    name: str  # of its file, printable
    recipe: str
    base: TrainingConfig  # recipe < file < flags: what every trial holds where the space says nothing else
    space: Mapping[str, BaseDistribution]
    enqueue: tuple[Mapping[str, Any], ...]  # what to try first; what one leaves out is drawn
    settings: SearchConfig

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """`maximize` or `minimize` for each metric."""
        return ["maximize" if metric == "val_accuracy" else "minimize" for metric in self.settings.metric]

    def config(self, params: Mapping[str, object]) -> TrainingConfig:
        """The settings of the run that a trial is.

        Raises:
            UsageError: a value that no run could hold.
        """
        return TrainingConfig.build(dict(self.base) | self.snap(params))

    def snap(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Drawn values as a search file would spell them."""
        return {setting: snap_to_step(self.space.get(setting), value) for setting, value in params.items()}

    def sample(self, random: np.random.Generator) -> dict[str, Any]:
        """A configuration at random, whether or not it fits the images."""
        return {setting: sample(of, random) for setting, of in self.space.items()}

    def differing_settings(self) -> dict[str, str]:
        """What every trial holds that the recipe does not say, as text: from the search's file and the flags."""
        recipe = TrainingConfig.build(training.read_recipe(self.recipe))
        return {
            setting: self.base.text(setting)
            for setting in TrainingConfig.model_fields
            if setting not in self.space and getattr(self.base, setting) != getattr(recipe, setting)
        }

    def n_configurations(self) -> int | None:
        """How many there are, those that do not fit the images among them; None if a range is continuous."""
        each = [values(of) for of in self.space.values()]
        return None if None in each else math.prod(len(known) for known in each if known is not None)

    def study_name(self, data_fingerprint: str) -> str:
        """The name of the study that the search makes, or goes on with."""
        return printable(self.settings.study or f"{self.name}-{self.fingerprint(data_fingerprint)}")

    def fingerprint(self, data_fingerprint: str) -> str:
        """Ten hexadecimal digits that change with all but budgets and places: a study is of one question."""
        asked = {
            "data": data_fingerprint,
            "space": {setting: distribution_to_json(of) for setting, of in self.space.items()},
            "held": self.base.model_dump(mode="json", exclude={"dataset", *training.CHANGE_NO_RESULT, *self.space}),
            "enqueue": [dict(params) for params in self.enqueue],
            **self.settings.model_dump(mode="json", exclude=set(BUDGETS_AND_PLACES)),
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:10]


def parse_search(arguments: Sequence[str]) -> SearchSpec:
    """Return the search that a command line describes; see `build_search`."""
    return build_search(parse_search_command(arguments))


def build_search(command: SearchCommand) -> SearchSpec:
    """Return the search of a parsed command line: the flags override the file, which overrides the recipe.

    Raises:
        UsageError: the space, a value of it, or the method breaks a rule.
    """
    file = definition.read_definition(command.file)
    for setting in command.overrides:
        if setting in file.space:
            raise UsageError(f"{setting} must not be given, as it is searched: space in {file.path.absolute()}")
    flags = SearchFlags.build(file.settings | command.overrides)
    if "storage" in command.overrides and flags.storage is not None:
        validate_storage_url(flags.storage, os.environ)
    if len(flags.metric) > 1 and "pruner" not in flags.model_fields_set:
        flags = flags.model_copy(update={"pruner": "none"})
    search = SearchSpec(
        name=printable(file.path.stem)[:STUDY_NAME],
        recipe=file.recipe,
        base=TrainingConfig.build(
            {setting: value for setting, value in flags if setting in TrainingConfig.model_fields}
        ),
        space=file.space,
        enqueue=file.enqueue,
        settings=SearchConfig.build(
            {setting: value for setting, value in flags if setting in SearchConfig.model_fields}
        ),
    )
    _check_method(search)
    return search


def infeasibility(
    search: SearchSpec, params: Mapping[str, object], *, image_shape: Sequence[int], training_images: int
) -> str | None:
    """Why a run with these cannot be trained on these images, as it would be told; None if it can.

    Args:
        image_shape: (height, width, channels), in pixels.
        training_images: how many there are after the split.
    """
    try:
        training.validate_against_data(search.config(params), image_shape=image_shape, training_images=training_images)
    except UsageError as error:
        return str(error)
    return None


def check_against_data(search: SearchSpec, *, image_shape: Sequence[int], training_images: int) -> None:
    """Refuse a value of the space that nothing else in it makes trainable on these images.

    Single combinations may still be infeasible: a large kernel with large patches.

    Raises:
        UsageError: with the reason, as a run would be told.
    """
    judged = {setting: bounds(search.space[setting]) for setting in OF_THE_FIT if setting in search.space}
    if "patch_size" in judged:  # between two sizes that divide the image lie some that do not
        judged["patch_size"] = values(search.space["patch_size"]) or ()
    for fixed in [{}, *({setting: value} for setting, known in judged.items() for value in known)]:
        # of all but patch_size the least fits whatever fits, so that no product of long lists need be looked at
        free = {
            setting: known if setting == "patch_size" else [min(known)]
            for setting, known in judged.items()
            if setting not in fixed
        }
        reasons = [
            infeasibility(
                search,
                fixed | dict(zip(free, combination, strict=True)),
                image_shape=image_shape,
                training_images=training_images,
            )
            for combination in product(*free.values())
        ]
        if None not in reasons:
            own = [reason for reason in reasons if reason and reason.startswith(tuple(fixed))]
            raise UsageError(f"search {search.name}: {(own or reasons)[0]}")


def _check_method(search: SearchSpec) -> None:
    """Refuse a metric, sampler and pruner that do not go together."""
    metric, many = search.settings.metric, search.n_configurations()
    if not {"val_accuracy", "val_loss"} & set(metric):
        raise UsageError(f"metric must have val_accuracy or val_loss among them, got {','.join(metric)}")
    if len(metric) > 1 and search.settings.pruner != "none":
        raise UsageError(
            f"pruner must be none where there are two metrics, which give an unfinished trial no rank, "
            f"got {search.settings.pruner} with {','.join(metric)}"
        )
    if search.base.register_as and not search.settings.final_top:
        raise UsageError(
            "final_top must be at least 1 with register_as, as the winner of the final is registered: got 0"
        )
    if search.base.filter_steps:
        raise UsageError(
            f"filter_steps must be 0 in a search, whose trials draw nothing: got {search.base.filter_steps}; train the "
            "winner with it"
        )
    if search.settings.sampler == "grid" and (many is None or many > GRID):
        continuous = ", ".join(setting for setting, of in search.space.items() if values(of) is None)
        got = f"a continuous {continuous}" if continuous else f"{many:,}"
        raise UsageError(f"sampler=grid must have at most {GRID:,} configurations, got {got}; give the ranges a step")
