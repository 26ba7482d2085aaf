"""Limits of a search on what a configuration may cost: refused before it is trained, and told to the sampler."""

import json
from collections.abc import Mapping, Sequence

from pipeline.config.search import SearchConfig
from pipeline.config.training import TrainingConfig
from pipeline.model.size import count_parameters

# The limit of each cost
LIMITS = {"parameters": "max_parameters", "latency_ms": "max_latency_ms"}


def known_costs(
    config: TrainingConfig, latencies: Mapping[str, float], *, image_shape: Sequence[int], classes: int
) -> dict[str, float]:
    """Return what of the costs of a configuration is known before it is trained.

    Args:
        config: the configuration.
        latencies: what was measured, in milliseconds by `architecture`.
        image_shape: (height, width, channels), in pixels.
        classes: number of classes.
    """
    # with folds as many networks are served as one
    parameters = (config.folds or 1) * count_parameters(config.model, image_shape, classes)
    measured = latencies.get(architecture(config))
    return {"parameters": parameters} | ({} if measured is None else {"latency_ms": measured})


def architecture(config: TrainingConfig) -> str:
    """Return a text that is the same for configurations of the same network, whose predictions take the same time."""
    settings = ("filters", "depth", "kernel_size", "patch_size", "activation", "folds", "precision")
    return json.dumps(config.model_dump(mode="json", include=set(settings)), sort_keys=True)


def why_too_costly(settings: SearchConfig, costs: Mapping[str, float]) -> str | None:
    """Return which limit of a search a configuration of these costs is beyond, or None."""
    for cost, value in costs.items():
        most = getattr(settings, LIMITS[cost])
        if most is not None and value > most:
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
            return f"{cost} must be at most {LIMITS[cost]}: {most:,}, got {shown}"
    return None


def constraints(settings: SearchConfig, costs: Mapping[str, float]) -> dict[str, float]:
    """Return by how much of its limit each cost is beyond it, 0 or less if it is not, as Optuna learns it."""
    limits = {cost: getattr(settings, LIMITS[cost]) for cost in costs}
    return {cost: value / limits[cost] - 1 for cost, value in costs.items() if limits[cost] is not None}
