"""The specification of a search: its space, the fixed settings of its trials, its budget, and checks of all of them."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from optuna.distributions import BaseDistribution, distribution_to_json

from pipeline.config import data_checks
from pipeline.config.effective import effective
from pipeline.config.monitor import DIRECTIONS, Direction, Monitor
from pipeline.config.recipe import read_recipe
from pipeline.config.search import SearchCommand, SearchConfig, SearchFlags, parse_search_command
from pipeline.config.training import CHANGE_NO_RESULT, TrainingConfig
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import format_value, printable
from pipeline.search import definition
from pipeline.search.conditions import (
    Conditions,
    combinations,
    count_configurations,
    is_drawn,
    with_ancestors,
)
from pipeline.search.distributions import bounds, sample, snap_to_step, values
from pipeline.search.samplers import validate_sampler
from pipeline.search.storage_url import validate_storage_url

# It imports Keras, which takes seconds
if TYPE_CHECKING:
    from pipeline.training.initial_weights import InitialWeights
    from pipeline.training.teacher import Teacher

# A study is resumed if only these have changed. Any other change makes a new study.
BUDGETS_AND_PLACES = frozenset(
    "trials hours max_epochs_total patience_trials target final_only trial_minutes final_top final_seeds ensemble "
    "workers start_from trials_per_gpu cluster storage drivers study".split()
)
# The settings that `validate_against_data` compares with the images
CHECKED_AGAINST_DATA = ("patch_size", "kernel_size", "batch_size", "translation", "cutout")
# The settings that decide how soon batch norm's averages are of use
BATCH_NORM = ("batch_size", "batch_norm_momentum", "ema_momentum")
# Those that compare trials wherever these have a value
PRUNERS_OF_FOLDS = ("median", "percentile", "none")
# Optuna lists a grid in memory
MAX_GRID = 10_000
# Characters of a file's name, which names a study and its run
MAX_NAME = 100


@dataclass(frozen=True)
class SearchSpec:
    """A search whose settings have been checked, as far as that is possible without the images."""

    name: str  # of its file, printable
    recipe: str
    base: TrainingConfig  # the settings of all trials that are not in the space: recipe < file < flags
    space: Mapping[str, BaseDistribution]  # each setting after those that its condition names
    conditions: Conditions  # of the settings that are not drawn in every trial
    enqueue: tuple[Mapping[str, Any], ...]  # configurations to try first; settings that they leave out are drawn
    settings: SearchConfig
    refit: bool = False  # whether the winner is trained once more, on training and validation images
    # models that trials start from, by what `weights_from` is in the file
    sources: "Mapping[str, InitialWeights]" = field(default_factory=dict)
    # those that teach them, by what `teacher` is in the file
    teachers: "Mapping[str, Teacher]" = field(default_factory=dict)

    @property
    def directions(self) -> list[Direction]:
        """Return the direction of each metric; costs are minimized."""
        return [DIRECTIONS.get(metric, "minimize") for metric in self.settings.metric]

    @property
    def monitor(self) -> Monitor:
        """Return the metric that is known at every epoch, by which trials select theirs: the first of validation."""
        return self.base.monitor

    def is_as_good(self, value: float, other: float) -> bool:
        """Return whether a value of the first metric is as good as another, or better."""
        return value >= other if self.directions[0] == "maximize" else value <= other

    @property
    def most_epochs(self) -> int:
        """Return the number of epochs of the longest trial, over all of its folds."""
        epochs: int = max(bounds(self.space["epochs"])) if "epochs" in self.space else self.base.epochs
        return epochs * (self.base.folds or 1)

    def config(self, params: Mapping[str, object]) -> TrainingConfig:
        """Return the settings of the trial with these searched settings.

        Raises:
            UsageError: a value that its setting cannot have.
        """
        settings = dict(self.base) | self.snap(params)
        if teacher := self.teachers.get(settings["teacher"]):
            settings["teacher"] = teacher.origin
        source = self.sources.get(settings["weights_from"])
        if source is None:
            return TrainingConfig.build(settings)
        given = self.base.model_fields_set | params.keys()
        return source.complete(TrainingConfig.build({name: settings[name] for name in given}))

    def origins(self, setting: Literal["weights_from", "teacher"] = "weights_from") -> list[str]:
        """Return the models that trials start from, or are taught by, as recipe, file or flags name them."""
        choices = list(values(self.space[setting]) or ()) if setting in self.space else []
        if setting not in self.space or setting in self.conditions:
            # the base's is that of the trials which draw none
            choices.append(getattr(self.base, setting))
        return [choice for choice in dict.fromkeys(choices) if choice is not None]

    def snap(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return drawn values as a search file would spell them."""
        return {setting: snap_to_step(self.space.get(setting), value) for setting, value in params.items()}

    def sample(self, random: np.random.Generator) -> dict[str, Any]:
        """Return a random configuration, whether or not it fits the images."""
        params: dict[str, Any] = {}
        for setting, distribution in self.space.items():
            if self.is_drawn(setting, params):
                params[setting] = sample(distribution, random)
        return params

    def is_drawn(self, setting: str, params: Mapping[str, Any]) -> bool:
        """Return whether a setting is drawn beside the values of those before it in the space."""
        return is_drawn(setting, params, self.conditions)

    def drawn(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return of the settings of a run those that a trial of this search would draw to train alike."""
        params: dict[str, Any] = {}
        for setting in self.space:
            if self.is_drawn(setting, params):
                params[setting] = settings[setting]
        return params

    def configurations(self) -> Iterator[dict[str, Any]]:
        """Yield every configuration of a space without continuous ranges."""
        return combinations({setting: values(one) or () for setting, one in self.space.items()}, self.conditions)

    def key(self, params: Mapping[str, Any]) -> str:
        """Return a text that is the same for drawn settings with which a training goes the same way."""
        try:
            config = effective(self.config(params)).model_dump(mode="json")
        except UsageError:
            # It cannot be trained, and is like no other
            config = {}
        # A driver may have died while it drew them
        missing = [name for name in self.space if name not in params and self.is_drawn(name, params)]
        return json.dumps([config, dict(params) if missing or not config else {}], sort_keys=True)

    def differing_settings(self) -> dict[str, str]:
        """Return as text the settings of all trials that the file or the flags change in the recipe."""
        recipe = TrainingConfig.build(read_recipe(self.recipe))
        return {
            setting: self.base.text(setting)
            for setting in TrainingConfig.model_fields
            if setting not in self.space and getattr(self.base, setting) != getattr(recipe, setting)
        }

    def n_configurations(self) -> int | None:
        """Return the number of configurations, infeasible ones included, or None if a range is continuous."""
        return count_configurations(self.space, self.conditions)

    def study_name(self, data_fingerprint: str) -> str:
        """Return the name of the study that the search creates or resumes."""
        return printable(self.settings.study or f"{self.name}-{self.fingerprint(data_fingerprint)}")

    def fingerprint(self, data_fingerprint: str) -> str:
        """Return ten hexadecimal digits that change with every setting except BUDGETS_AND_PLACES."""
        # by their own URIs, as the space may name them by an alias
        models = {one.origin for one in self.sources.values()} | {one.origin for one in self.teachers.values()}
        question = {
            "data": data_fingerprint,
            "space": {name: distribution_to_json(distribution) for name, distribution in self.space.items()},
            "when": self.conditions,
            "held": self.base.model_dump(mode="json", exclude={"dataset", *CHANGE_NO_RESULT, *self.space}),
            "enqueue": [dict(params) for params in self.enqueue],
            **({"models": sorted(models)} if models else {}),
            **self.settings.model_dump(mode="json", exclude=set(BUDGETS_AND_PLACES)),
        }
        return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:10]


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
    flags = _settle_monitor(SearchFlags.build(file.settings | command.overrides))
    if "storage" in command.overrides and flags.storage is not None:
        validate_storage_url(flags.storage, os.environ)
    for source in flags.start_from or ():
        if "://" in source:
            validate_storage_url(source, os.environ, setting="start_from")
    if "pruner" not in flags.model_fields_set and (len(flags.metric) > 1 or flags.folds):
        flags = flags.model_copy(update={"pruner": "none" if len(flags.metric) > 1 else "median"})
    search = SearchSpec(
        name=printable(file.path.stem)[:MAX_NAME],
        recipe=file.recipe,
        base=TrainingConfig.build(
            {
                name: getattr(flags, name)
                for name in TrainingConfig.model_fields
                # of a search, its winner alone is refitted
                if name in flags.model_fields_set and name != "refit"
            }
        ),
        refit=flags.refit,
        space=file.space,
        conditions=file.conditions,
        enqueue=file.enqueue,
        settings=SearchConfig.build(
            {setting: value for setting, value in flags if setting in SearchConfig.model_fields}
        ),
    )
    _validate_method(search)
    return search


def _settle_monitor(flags: SearchFlags) -> SearchFlags:
    """Return the settings in which trials monitor what the search optimizes, whichever of the two was given.

    Raises:
        UsageError: No metric is one of validation, or both were given and contradict each other.
    """
    if "metric" not in flags.model_fields_set:
        return flags.model_copy(update={"metric": (flags.monitor,)})
    monitor = next((metric for metric in flags.metric if metric in DIRECTIONS), None)
    if monitor is None:
        raise UsageError(f"metric must have one of {', '.join(DIRECTIONS)} among them, got {','.join(flags.metric)}")
    if "monitor" in flags.model_fields_set and flags.monitor != monitor:
        raise UsageError(
            f"monitor must be what the search optimizes, {monitor} of metric={','.join(flags.metric)}, got "
            f"{flags.monitor}; leave one of the two out"
        )
    return flags.model_copy(update={"monitor": monitor})


def infeasibility(
    search: SearchSpec, params: Mapping[str, object], *, image_shape: Sequence[int], training_images: int
) -> str | None:
    """Return why a configuration cannot be trained on these images, or None if it can.

    Args:
        search: the search.
        params: its searched settings.
        image_shape: (height, width, channels), in pixels.
        training_images: number of training images after the split.
    """
    try:
        config = search.config(params)
        data_checks.validate_against_data(config, image_shape=image_shape, training_images=training_images)
        # by the model that `complete` has named
        for source in search.sources.values():
            if source.origin == config.weights_from:
                source.check(config, image_shape)
    except UsageError as error:
        return str(error)
    return None


def slow_batch_norm_in_space(search: SearchSpec, *, training_images: int) -> str | None:
    """Return a warning if in the space, or in a part of it, batch norm's averages lag behind, else None.

    A larger batch and a larger momentum are slower, so that of a range its ends are enough.

    Args:
        search: the search.
        training_images: number of training images after the split.
    """
    warnings = []
    for drawn in _combinations(
        search, {name: bounds(search.space[name]) for name in BATCH_NORM if name in search.space}
    ):
        config = TrainingConfig.build(dict(search.base) | drawn)
        params = {name: drawn[name] for name in BATCH_NORM if name in drawn}
        steps = math.ceil(training_images / config.batch_size)
        warnings.append(
            (config.batch_norm_momentum**steps, params, data_checks.slow_batch_norm(config, steps_per_epoch=steps))
        )
    slow = [(left, params, warning) for left, params, warning in warnings if warning]
    if not slow:
        return None
    _, params, warning = max(slow, key=lambda one: one[0])
    if not params:
        return warning
    where = "all of the space" if len(slow) == len(warnings) else "a part of the space"
    example = ", ".join(f"{name}={format_value(value)}" for name, value in params.items())
    return f"in {where} ({example}, for example) {warning}"


def check_against_data(search: SearchSpec, *, image_shape: Sequence[int], training_images: int) -> None:
    """Raise UsageError for a value of the space with which no configuration can be trained on these images.

    Single configurations may still be infeasible: a large kernel with large patches.

    Args:
        search: the search.
        image_shape: (height, width, channels), in pixels.
        training_images: number of training images after the split.
    """
    checked = {setting: bounds(search.space[setting]) for setting in CHECKED_AGAINST_DATA if setting in search.space}
    # All of them, as between two sizes that divide the image lie some that do not
    if "patch_size" in checked:
        checked["patch_size"] = values(search.space["patch_size"]) or ()
    # Of all settings but patch_size the least value fits if any does, so that no product of long lists is needed
    least = {setting: known if setting == "patch_size" else [min(known)] for setting, known in checked.items()}
    for fixed in [{}, *({setting: [value]} for setting, known in checked.items() for value in known)]:
        reasons = [
            infeasibility(search, params, image_shape=image_shape, training_images=training_images)
            for params in _combinations(search, least | fixed)
            if fixed.keys() <= params.keys()
        ]
        if reasons and None not in reasons:
            own = [reason for reason in reasons if reason and reason.startswith(tuple(fixed))]
            raise UsageError(f"search {search.name}: {(own or reasons)[0]}")


def _combinations(search: SearchSpec, choices: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield each configuration of some settings' values, with all values of the settings that their conditions name."""
    names = with_ancestors(choices, search.conditions)
    known = {name: choices.get(name) or values(search.space[name]) or () for name in search.space if name in names}
    return combinations(known, search.conditions)


def _validate_handover(search: SearchSpec) -> None:
    """Raise UsageError for a refit or an ensemble that is not possible."""
    top, ensemble = search.settings.final_top, search.settings.ensemble
    if search.refit and not top:
        raise UsageError("final_top must be at least 1 with refit, as the winner of the final is trained again: got 0")
    if ensemble != "none" and top < 2:
        raise UsageError(f"final_top must be at least 2 with ensemble={ensemble}, for as many networks: got {top}")
    if ensemble != "none" and search.base.folds:
        raise UsageError(
            "ensemble must be none with folds, whose winner is the mean of its networks, and which leave no image that "
            f"none of them was trained on: got {ensemble}"
        )
    if search.refit and ensemble == "replace":
        raise UsageError("ensemble must be none or beside with refit, which takes the winner's place: got replace")
    if search.refit and "early_stopping_epochs" in search.space:
        raise UsageError("space must not have early_stopping_epochs with refit, which leaves no images to stop by")
    # a refit is of one network
    data_checks.check_refit(search.base.model_copy(update={"refit": search.refit, "folds": None}))


def _validate_method(search: SearchSpec) -> None:
    """Raise UsageError for a metric, sampler and pruner that do not go together."""
    metric, number = search.settings.metric, search.n_configurations()
    validate_sampler(search.settings, conditional=bool(search.conditions))
    if len(metric) > 1 and search.settings.pruner != "none":
        raise UsageError(
            "pruner must be none with two metrics, by which an unfinished trial cannot be ranked, "
            f"got {search.settings.pruner} with {','.join(metric)}"
        )
    if search.settings.final_only and not search.settings.final_top:
        raise UsageError("final_top must be at least 1 with final_only: got 0")
    if search.base.register_as and not search.settings.final_top:
        raise UsageError(
            "final_top must be at least 1 with register_as, as the winner of the final is registered: got 0"
        )
    _validate_handover(search)
    # the model that trials start from may set the depth
    unknown = {*search.space, *(("depth",) if search.origins() else ())}
    data_checks.validate_settings(search.base, unknown=unknown)
    if search.base.folds and search.settings.pruner not in PRUNERS_OF_FOLDS:
        raise UsageError(
            f"pruner must be {', '.join(PRUNERS_OF_FOLDS[:-1])} or {PRUNERS_OF_FOLDS[-1]} with folds, as a trial has a "
            f"value after each fold and none between: got {search.settings.pruner}"
        )
    if search.base.filter_steps:
        raise UsageError(
            "filter_steps must be 0 in a search, whose trials draw no figures: "
            f"got {search.base.filter_steps}; train the winner with it"
        )
    if search.settings.sampler == "grid" and (number is None or number > MAX_GRID):
        continuous = ", ".join(
            setting for setting, distribution in search.space.items() if values(distribution) is None
        )
        got = f"a continuous {continuous}" if continuous else f"{number:,}"
        raise UsageError(
            f"sampler=grid must have at most {MAX_GRID:,} configurations, got {got}; give the ranges a step"
        )
