"""How long a search will roughly take, estimated from its trials or from one training step."""

from collections.abc import Sequence
from itertools import islice
from statistics import mean

from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import Dataset
from pipeline.runtime.text import format_duration
from pipeline.search.executors.base import TrialJob
from pipeline.search.session import SearchContext
from pipeline.tracking.tags import RunRef, TrialOutcome

# Configurations whose mean cost stands for the whole space
SAMPLES = 200

# Costs in multiply-adds of a depthwise convolution, as measured with ConvMixers of 16 to 256 filters on a CPU:
# GELU, batch norm and residual of one activation
ELEMENTWISE = 30.0
# a multiply-add of a matrix product
POINTWISE = 1 / 6
# the forward pass of an image, in forward and backward passes
VALIDATION = 1 / 3


def estimate_duration(context: SearchContext, data: Dataset) -> str | None:
    """Return a line on how long the search will roughly take, or None if that is not known.

    The estimate comes from the trials that have finished, or before the first one from a training step.
    """
    study = context.study
    settings, finished = study.search.settings, study.n_finished()
    if not finished:
        return _estimate_from_step(context, data)
    left = (settings.trials - finished) * study.searched_seconds() / finished
    return f"about {format_duration(left)} left, as the trials so far went" if left > 0 else None


def _estimate_from_step(context: SearchContext, data: Dataset) -> str | None:
    """Time a training step of one configuration, and return the estimate for the whole search."""
    search = context.study.search
    sample = [search.config(params) for params in islice(context.study.random_configurations(), SAMPLES)]
    if not sample:
        return None
    run = RunRef(context.runs.tracking_uri, context.runs.id)
    result = context.run_job(TrialJob(-1, sample[0], run, "step"))
    if result.outcome is not TrialOutcome.FINISHED:
        # The trials will fail for the same reason, and report it
        return None
    seconds = result.metrics["tracing_seconds"] + trial_seconds(
        sample,
        measured=sample[0],
        step_seconds=result.metrics["step_seconds"],
        image_shape=data.image_shape,
        training_images=len(data.train),
        validation_images=len(data.validation),
    )
    trials = min(search.settings.trials, search.n_configurations() or search.settings.trials)
    total = format_duration(trials * seconds / max(1, context.executor.free()))
    limit = f", at most {search.settings.hours:g} h" if search.settings.hours else ""
    return f"very roughly {total}{limit}: {trials} trials of {format_duration(seconds)} each, less what pruning saves"


def relative_cost(config: TrainingConfig, image_shape: Sequence[int]) -> float:
    """Return the cost of training on one image, in multiply-adds of a depthwise convolution.

    Args:
        config: a configuration.
        image_shape: (height, width, channels), in pixels.
    """
    height, width = image_shape[:2]
    patches = (height // config.patch_size) * (width // config.patch_size)
    each = config.kernel_size**2 + ELEMENTWISE + POINTWISE * config.filters
    return patches * config.filters * config.depth * each


def trial_seconds(
    configs: Sequence[TrainingConfig],
    *,
    measured: TrainingConfig,
    step_seconds: float,
    image_shape: Sequence[int],
    training_images: int,
    validation_images: int,
) -> float:
    """Return the mean duration of training a configuration to its end, in seconds.

    Args:
        configs: a sample of the space.
        measured: the configuration whose training step was timed.
        step_seconds: duration of that step.
        image_shape: (height, width, channels), in pixels.
        training_images: number of training images.
        validation_images: number of validation images.
    """
    images = training_images + VALIDATION * validation_images
    seconds_per_cost = step_seconds / (measured.batch_size * relative_cost(measured, image_shape))
    return seconds_per_cost * images * mean(config.epochs * relative_cost(config, image_shape) for config in configs)
