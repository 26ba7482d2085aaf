"""Samplers: how the settings of a trial are chosen. A new one is an entry here, and a value of `sampler`."""

import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec

import optuna
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)

from pipeline.config.search import SearchConfig
from pipeline.runtime.errors import UsageError
from pipeline.runtime.shell import install_command

# Trials of a generation: Optuna's 50 would leave most searches in the first one, which is random
POPULATION = 20
# Packages that are installed only where they are wanted; a sampler's name is that of a dependency group
PACKAGES = {"gp": "torch", "cmaes": "cmaes"}
# They draw only what every trial has
NO_CONDITIONS = ("qmc", "gp", "cmaes")


def build_sampler(settings: SearchConfig, *, seed: int, conditional: bool) -> BaseSampler:
    """Return the sampler of a search.

    Args:
        settings: of the search.
        seed: of the sampler, another one for each driver and start, so that none repeats the draws of another.
        conditional: whether a setting of the space has a condition.
    """
    # of group, with_margin and QMCSampler, whose interfaces may change; Optuna's version is fixed
    warnings.filterwarnings(
        "ignore", category=optuna.exceptions.ExperimentalWarning, message="Argument ``(group|with_margin)``|QMCSampler"
    )
    # at each draw, since trials have the constraint that their configuration can be trained
    warnings.filterwarnings("ignore", message="Constraints have been set, but CmaEsSampler")
    if settings.sampler == "tpe" and conditional and len(settings.metric) == 1:
        # Settings that are drawn in the same trials are drawn together
        return TPESampler(seed=seed, constant_liar=True, group=True)
    return SAMPLERS[settings.sampler](seed)


def validate_sampler(settings: SearchConfig, *, conditional: bool) -> None:
    """Raise UsageError if the package that a sampler needs is missing, or it does not suit the metrics or the space."""
    sampler, metrics = settings.sampler, ",".join(settings.metric)
    if sampler == "nsga2" and len(settings.metric) != 2:
        raise UsageError(f"sampler=nsga2 must have two metrics, got {metrics}; try metric=val_accuracy,parameters")
    if sampler == "cmaes" and len(settings.metric) != 1:
        raise UsageError(f"sampler=cmaes must have one metric, got {metrics}; try sampler=nsga2")
    if sampler in NO_CONDITIONS and conditional:
        raise UsageError(f"sampler={sampler} must have a space without conditions, got some (when); try sampler=tpe")
    package = PACKAGES.get(sampler)
    if package and find_spec(package) is None:
        raise UsageError(
            f"sampler={sampler} must have the package {package}, which is not installed; try "
            f"{install_command('--group', sampler)}"
        )


SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, constant_liar=True),
    "random": lambda seed: RandomSampler(seed=seed),
    # its configurations are enqueued one after the other
    "grid": lambda seed: RandomSampler(seed=seed),
    "qmc": lambda seed: QMCSampler(
        seed=seed, scramble=True, warn_asynchronous_seeding=False, warn_independent_sampling=False
    ),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=POPULATION),
    "gp": lambda seed: GPSampler(seed=seed, warn_independent_sampling=False),
    "cmaes": lambda seed: CmaEsSampler(seed=seed, warn_independent_sampling=False, with_margin=True),
}
