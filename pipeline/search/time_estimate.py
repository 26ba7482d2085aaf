"""How long a search will roughly take: one training step of one configuration, and what the others cost beside it."""

from collections.abc import Sequence
from itertools import islice
from statistics import mean

from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import Dataset
from pipeline.runtime.text import format_duration
from pipeline.search import attributes
from pipeline.search.executors.base import TrialJob
from pipeline.search.session import SearchContext
from pipeline.tracking.tags import RunRef, TrialOutcome

SAMPLE = 200  # configurations whose mean cost stands for the space's

# In multiply-adds of a depthwise convolution, as measured with ConvMixers of 16 to 256 filters on a CPU
ELEMENTWISE = 30.0  # GELU, batch norm and residual of one activation
POINTWISE = 1 / 6  # a multiply-add of a matrix product
VALIDATION = 1 / 3  # an image's way forward, of its way forward and back


def estimate_duration(session: SearchContext, data: Dataset) -> str | None:
    """Roughly how long the search will take: as its trials so far, or as a training step tells; None if it does not."""
    settings, done = session.study.search.settings, session.study.n_finished()
    if not done:
        return _as_a_step_tells(session, data)
    seconds = session.study.get_attr(attributes.SEARCHED_SECONDS) or 0
    left = (settings.trials - done) * seconds / done
    return f"about {format_duration(left)} left, as the trials so far went" if left > 0 else None


def _as_a_step_tells(session: SearchContext, data: Dataset) -> str | None:
    search = session.study.search
    sample = [search.config(params) for params in islice(session.study.at_random(), SAMPLE)]
    if not sample:
        return None
    ended = session.alone(TrialJob(-1, sample[0], RunRef(session.runs.tracking_uri, session.runs.id), "step"))
    if ended.outcome is not TrialOutcome.FINISHED:
        return None  # what ails it the trials will say
    seconds = ended.metrics["tracing_seconds"] + trial_seconds(
        sample,
        measured=sample[0],
        step_seconds=ended.metrics["step_seconds"],
        image_shape=data.image_shape,
        training_images=len(data.train),
        validation_images=len(data.validation),
    )
    trials = min(search.settings.trials, search.configurations() or search.settings.trials)
    whole = format_duration(trials * seconds / max(1, session.executor.free()))
    most = f", at most {search.settings.hours:g} h" if search.settings.hours else ""
    return f"very roughly {whole}{most}: {trials} trials of {format_duration(seconds)} each, less what pruning saves"


def relative_cost(config: TrainingConfig, image_shape: Sequence[int]) -> float:
    """What training on one image costs, in multiply-adds of a depthwise convolution.

    Args:
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
    """Mean time of training one of the configurations whole, as the measured one's step tells.

    Args:
        configs: some of the space's; what they mean together, the space does.
        step_seconds: of a training step of `measured`.
        image_shape: (height, width, channels), in pixels.
    """
    images = training_images + VALIDATION * validation_images
    pace = step_seconds / (measured.batch_size * relative_cost(measured, image_shape))
    return pace * images * mean(config.epochs * relative_cost(config, image_shape) for config in configs)
