"""How long a search will roughly take, estimated from its trials or from one training step."""

from collections.abc import Sequence
from itertools import islice
from math import ceil
from statistics import mean

from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import Dataset
from pipeline.runtime.text import count, format_duration
from pipeline.search.executors.base import TrialJob
from pipeline.search.final_record import FinalRecord
from pipeline.search.session import SearchContext
from pipeline.search.study import Study
from pipeline.tracking.tags import RunRef, TrialOutcome

# Configurations whose mean cost stands for the whole space
SAMPLES = 200
# Slots in which a training step is timed at once; more of them would hardly say more
MAX_TIMED = 32

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
    record = final_record(context)
    if not finished:
        return None if settings.final_only else _estimate_from_step(context, data, record)
    trials = 0 if settings.final_only else max(0, settings.trials - finished)
    left = trials * study.searched_seconds() / finished
    left += final_seconds(study, record, slots=max(1, context.executor.free()))
    if left <= 0:
        return None
    return f"about {format_duration(left)} left, as the trials so far went: {_budget(trials, record)}"


def final_record(context: SearchContext) -> FinalRecord:
    """Return the record of a search's finals."""
    study = context.study
    return FinalRecord(study, metric=study.search.monitor, data_fingerprint=context.data_fingerprint)


def final_seconds(study: Study, record: FinalRecord, *, slots: int) -> float:
    """Return about how long the trainings of a final take, from the duration of the trials beside each other.

    Args:
        study: The study.
        record: Of its finals.
        slots: How many run at a time.
    """
    durations = [trial.duration.total_seconds() for trial in study.ranked() if trial.duration]
    return _final_rounds(record, slots, folds=study.search.base.folds) * mean(durations) if durations else 0.0


def _final_rounds(record: FinalRecord, slots: int, *, folds: int | None) -> float:
    """Return how many trials one after another take as long as the missing trainings of a final."""
    # a refit comes after all others, and is one network
    return ceil(record.n_missing() / slots) + record.needs_refit() / (folds or 1)


def _estimate_from_step(context: SearchContext, data: Dataset, record: FinalRecord) -> str | None:
    """Time a training step of one configuration, and return the estimate for the whole search.

    The step is timed in all slots at once, as trainings beside each other are slower than one alone.
    """
    search = context.study.search
    sample = [search.config(params) for params in islice(context.study.random_configurations(), SAMPLES)]
    if not sample:
        return None
    trials = min(search.settings.trials, context.study.n_feasible() or search.settings.trials)
    slots = max(1, min(context.executor.free(), trials))
    run = RunRef(context.runs.tracking_uri, context.runs.id)
    jobs = [TrialJob(-number, sample[0], run, "step") for number in range(1, min(slots, MAX_TIMED) + 1)]
    results = [result for result in context.run_jobs(jobs) if result.outcome is TrialOutcome.FINISHED]
    if not results:
        # The trials will fail for the same reason, and report it
        return None
    tracing_seconds = mean(result.metrics["tracing_seconds"] for result in results)
    # each fold's network is built and traced anew
    seconds = (search.base.folds or 1) * tracing_seconds + trial_seconds(
        sample,
        measured=sample[0],
        step_seconds=mean(result.metrics["step_seconds"] for result in results),
        image_shape=data.image_shape,
        training_images=len(data.train),
        validation_images=len(data.validation),
    )
    rounds = ceil(trials / slots) + _final_rounds(record, slots, folds=search.base.folds)
    total = format_duration(rounds * seconds)
    limit = f", the trials at most {search.settings.hours:g} h" if search.settings.hours else ""
    each = f"{_budget(trials, record)} of {format_duration(seconds)} each"
    beside = f", {slots} at a time" if slots > 1 else ""
    return f"very roughly {total}{limit}: {each}{beside}, less what pruning saves"


def _budget(trials: int, record: FinalRecord) -> str:
    """Return what is to be trained: `6 trials, 9 finals and 1 refit`."""
    numbers = {"trial": trials, "final": record.n_missing(), "refit": int(record.needs_refit())}
    parts = [count(number, what) for what, number in numbers.items() if number]
    return " and ".join([part for part in (", ".join(parts[:-1]), *parts[-1:]) if part])


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
    return (
        seconds_per_cost * images * mean(config.total_epochs * relative_cost(config, image_shape) for config in configs)
    )
