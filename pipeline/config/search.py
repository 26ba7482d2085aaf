"""The command line of search: its settings beside those of a run, and the file that describes the search."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from pipeline.config import yaml_file
from pipeline.config.arguments import NOTIFY_FLAGS, parse_with_positional, take_notify_flags
from pipeline.config.base import Config
from pipeline.config.monitor import Monitor
from pipeline.config.recipe import read_recipe
from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import nearest, shown

SEARCHES = Path(__file__).parents[2] / "experiments" / "searches"
PARTS = ("recipe", "space", "enqueue")  # of a search's file; all its other lines are settings


class SearchConfig(Config, title="search"):
    """The settings of a search, beside those of its runs."""

    trials: int = Field(50, ge=1, le=100_000, description="completed and pruned trials that the study is to have")
    hours: float | None = Field(None, gt=0, le=10_000, description="start no trial after this many hours of searching")
    max_epochs_total: int | None = Field(
        None, ge=1, le=10**9, description="start no trial after this many epochs of all trials together"
    )
    patience_trials: int | None = Field(
        None, ge=1, le=100_000, description="start no trial after this many in a row that were no better than the best"
    )
    target: float | None = Field(
        None,
        ge=-1e9,
        le=1e9,
        description="start no trial once one has reached this value of the first metric, 0.9 for 90 %",
    )
    final_only: bool = Field(False, description="start no trial: make the final of those that the study has, now")
    trial_minutes: float | None = Field(None, gt=0, le=100_000, description="stop a trial after this many minutes")

    max_parameters: int | None = Field(
        None, ge=1, le=10**12, description="train no configuration with more parameters, batch norm's averages included"
    )
    max_latency_ms: float | None = Field(
        None,
        gt=0,
        le=10**6,
        description="train no configuration that takes longer for one image, measured before its training",
    )
    max_memory_mb: int | None = Field(
        None, ge=256, le=10**7, description="give each trial this much memory of its GPU, and no more; on a GPU only"
    )

    metric: tuple[Literal[Monitor, "parameters", "epoch_seconds", "latency_ms"], ...] = Field(
        ("val_accuracy",),
        min_length=1,
        max_length=2,
        description="what is optimized, which trials monitor; not given: what monitor is; val_loss and costs are "
        "minimized, the others maximized; two give a Pareto front, without pruning",
    )
    start_from: tuple[str, ...] | None = Field(
        None,
        description="older studies whose comparable trials the search starts with: names, or storages as URL#STUDY",
    )
    sampler: Literal["tpe", "random", "grid", "qmc", "nsga2", "gp", "cmaes"] = Field(
        "tpe",
        description="how the settings of a trial are chosen; qmc: evenly spread; nsga2: for two metrics; gp and cmaes "
        "need a package that is not installed by default",
    )
    pruner: Literal["median", "percentile", "asha", "hyperband", "patience", "none"] = Field(
        "asha",
        description="stop a trial: asha and hyperband: that is not among the best of a rung; median: worse than the "
        "median of the others at the same epoch; percentile: not among the best pruner_percentile of them; patience: "
        "that has stopped improving; none: never; not given: median with folds, none with two metrics",
    )
    pruner_trials: int = Field(
        5, ge=1, le=100_000, description="median, percentile: finished trials before the first may be pruned"
    )
    pruner_epochs: int | None = Field(
        None,
        ge=0,
        le=100_000,
        description="epochs of each trial before it may be pruned, and of the first rung; none: half of all epochs, of "
        "hyperband's first rung one in pruner_factor squared",
    )
    pruner_percentile: float = Field(
        25.0, gt=0, lt=100, description="percentile: keep a trial that is among the best so many percent"
    )
    pruner_factor: int = Field(
        3, ge=2, le=100, description="asha, hyperband: each rung has so many times the epochs, for one trial in so many"
    )
    pruner_patience: int | None = Field(
        None, ge=1, le=100_000, description="patience: epochs without a better one; none: a quarter of all epochs"
    )

    final_top: int = Field(3, ge=0, le=1000, description="retrain this many of the best configurations; 0: none")
    final_seeds: int = Field(3, ge=1, le=1000, description="seeds that each of them is retrained with")
    ensemble: Literal["none", "beside", "replace"] = Field(
        "none",
        description="their networks of the winner's seed together as one model, the mean of their probabilities: none; "
        "beside: logged beside the winner; replace: takes its place if it is better beyond noise on validation images",
    )

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
        None, min_length=1, description="Optuna's URL, without a password; none: OPTUNA_STORAGE, or else a file here"
    )
    drivers: Literal["one", "shared"] = Field(
        "one", description="shared: run this command several times at once, on PostgreSQL, all sharing the budget"
    )
    study: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="name of the study; none: the search's name and a digest of what it depends on",
    )


class RangeSpacing(Config):
    """How the values of a range lie between its ends."""

    step: float | None = Field(None, gt=0)
    log: bool = False


class SearchFlags(TrainingConfig, SearchConfig):
    """The settings of a search and of its runs, side by side on the command line and in a search's file."""


SEARCH = """\
Search hyperparameters with Optuna: train trials, then retrain the best.

SEARCH is a YAML file with a recipe and the space around it: one of
experiments/searches/ by its name, or the path of any other. A flag overrides
the file, and the file overrides the recipe. The same command resumes a search
that was stopped, or extends one that has finished.

Trials are kept in the study (--storage), and all runs in MLflow: one for the
study, with its tables and figures, and one for each trial below it.

example:
  convmixer search kernel-patch-depth --trials 50
"""


class SearchFile(NamedTuple):
    """The content of a search's file, whose space has not been checked."""

    path: Path
    recipe: str
    own: frozenset[str]  # names of the settings that the file holds itself
    settings: dict[str, Any]  # those over the recipe's
    space: dict[str, Any]
    enqueue: Any


class SearchCommand(NamedTuple):
    """The parsed command line of `search`."""

    file: SearchFile
    overrides: dict[str, str]  # the flags
    notify: dict[str, str]  # flags that say who is told what happens


def parse_search_command(arguments: Sequence[str]) -> SearchCommand:
    """Return which search to run, and what the flags override.

    Raises:
        UsageError: an unknown search, recipe or setting, or a value that breaks its setting's rule.
    """
    file = read_search_file(arguments[0]) if arguments and not arguments[0].startswith("-") else None
    _, overrides = parse_with_positional(
        arguments,
        command="search",
        description=SEARCH,
        settings=SearchFlags.build(file.settings if file else {}),
        origin=file.path.stem if file else "default",
        positional=("search", yaml_file.choices(SEARCHES)),
        other_flags=NOTIFY_FLAGS,
    )
    notify = take_notify_flags(overrides)
    assert file, "parse_with_positional has refused a command line without a first word"
    SearchFlags.build(file.settings | overrides)
    return SearchCommand(file, overrides, notify)


def read_search_file(name: str) -> SearchFile:
    """Return the content of a search's file, after checking its settings.

    Args:
        name: the name of a file of experiments/searches/, or the path of a YAML file.

    Raises:
        UsageError: there is no such file, or a setting in it is unknown or breaks its rule.
    """
    path = yaml_file.find(name, folder=SEARCHES, kind="search")
    content = yaml_file.read_file(path, kind="search")
    try:
        own = {key: value for key, value in content.items() if key not in PARTS}
        for setting in own:
            if setting not in SearchFlags.model_fields:
                near = nearest(setting, [*PARTS, *SearchFlags.model_fields])
                raise UsageError(f"unknown setting {shown(setting)}{near}")
        space = content.get("space")
        if not isinstance(space, dict) or not space:
            raise UsageError(f"space must have a line for each setting that is searched, got {shown(space)}")
        recipe = content.get("recipe")
        if not isinstance(recipe, str):
            raise UsageError(f"recipe must name the recipe that the search starts from, got {shown(recipe)}")
        settings = read_recipe(recipe) | own
        SearchFlags.build(settings)
    except UsageError as error:
        raise UsageError(f"{path.absolute()}: {error}") from None
    return SearchFile(path, recipe, frozenset(own), settings, space, content.get("enqueue", []))
