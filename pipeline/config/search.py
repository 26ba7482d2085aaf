"""The settings of a search."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import Config
from pipeline.config.training import TrainingConfig


class SearchConfig(Config, title="search"):
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


class SearchFlags(SearchConfig, TrainingConfig):
    """Both kinds of settings, as they stand side by side on the command line and in a search file."""
