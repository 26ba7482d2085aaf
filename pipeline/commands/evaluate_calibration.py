"""Temperature scaling in an evaluation: the temperature of a model, and the model with its temperature folded in."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from pipeline.config.commands import EvaluateConfig
from pipeline.data.dataset import Dataset, Split
from pipeline.data.subset import build_subset, reload_dataset
from pipeline.evaluation.calibration import HIGHEST, LOWEST, fit_temperature, scale_probabilities
from pipeline.evaluation.metrics import accuracy
from pipeline.evaluation.robustness import predict_split
from pipeline.runtime.console import Console
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import count, percent
from pipeline.tracking.client import ModelVersion, TrackingClient
from pipeline.tracking.models import CALIBRATED, LoggedModel
from pipeline.tracking.query import TrainingRun
from pipeline.tracking.run import TrackedRun
from pipeline.tracking.tags import Tag

# of a probability: between a model with a temperature folded in, and the scaled probabilities of that without
TOLERANCE = 1e-4


class Temperature(NamedTuple):
    """A temperature, and the validation images that it was fitted on."""

    value: float
    images: Dataset


def validation_data(training_run: TrainingRun, dataset: Dataset, config: EvaluateConfig) -> Dataset | str:
    """Return the data whose validation images a model was not trained on, or why there are none.

    Args:
        training_run: The run that trained the model.
        dataset: The images to evaluate.
        config: Settings of the evaluation.
    """
    if not training_run.has_validation:
        return "the model was trained on the validation images too"
    if config.dataset is not None:
        try:
            dataset = reload_dataset(
                training_run.config.data, seed=training_run.config.seed, dataset=None, image_size=None
            )
        except UsageError as error:
            return f"the run's own data cannot be read: {error}"
    if dataset.fingerprint != training_run.fingerprint:
        return f"{dataset.name} is not as it was when the run was trained on it"
    return dataset if len(dataset.validation) else "the run has no validation images"


def fit_on_validation(model: LoggedModel, data: Dataset) -> Temperature | str:
    """Return the temperature that fits the validation images of a model's own data best, or why there is none."""
    subset = build_subset(data, "validation", classes=model.classes, image_shape=model.image_shape)
    probabilities = predict_split(model.predict_proba, subset.split)
    temperature = fit_temperature(probabilities, subset.labels)
    if not 1.01 * LOWEST < temperature < 0.99 * HIGHEST:
        right = percent(accuracy(probabilities, subset.labels))
        images = count(len(subset.labels), "validation image")
        return f"the best one lies beyond {LOWEST:g} and {HIGHEST:g}, as the model is right about {right} of {images}"
    return Temperature(temperature, data)


def log_calibrated_model(
    run: TrackedRun,
    version: ModelVersion | None,
    model: LoggedModel,
    temperature: Temperature,
    console: Console,
) -> None:
    """Log a model with its temperature folded in to the run that trained it, and register it if the model is.

    Args:
        run: The run that trained the model.
        version: The version that the model is registered as; None if it is not.
        model: The model.
        temperature: Its temperature.
        console: Shows what was logged.

    Raises:
        UsageError: The copy would predict another class for a validation image.
    """
    # imported here, as what is wrong is refused before Keras is imported
    from pipeline.model.temperature import fold_temperature
    from pipeline.serving.packaging import COMPARED_IMAGES, save_pyfunc

    calibrated = fold_temperature(model.model, temperature.value)
    images = temperature.images.validation
    _check_equal(model, replace(model, model=calibrated), images, temperature.value)
    description = f"{temperature.value:.6g}, fitted on {count(len(images), 'validation image')}"
    save = partial(save_pyfunc, model=calibrated, classes=model.classes, resize=model.resize)
    compared, _ = images.take(np.arange(min(COMPARED_IMAGES, len(images))))
    base = (version.name, version.version) if version else None
    run.log_calibrated_model(partial(save, images=compared), temperature=description, version=base)
    console.print(f"model    runs:/{run.id}/{CALIBRATED}: temperature {description}")


def describe_calibrated(client: TrackingClient, run_id: str) -> str | None:
    """Return a line on the version with calibrated probabilities that a run has registered; None if it has none."""
    tags = client.get_run(run_id).data.tags
    if Tag.REGISTERED_CALIBRATED not in tags:
        return None
    return (
        f"registry {tags[Tag.REGISTERED_CALIBRATED]} has calibrated probabilities, and the aliases of the other version"
    )


def _check_equal(model: LoggedModel, calibrated: LoggedModel, split: Split, temperature: float) -> None:
    """Raise UsageError unless a calibrated model predicts what scaling the model's probabilities does."""
    before, after = (predict_split(one.predict_proba, split) for one in (model, calibrated))
    changed = int((before.argmax(axis=1) != after.argmax(axis=1)).sum())
    difference = float(np.abs(after - scale_probabilities(before, temperature)).max())
    if changed or difference > TOLERANCE:
        raise UsageError(
            f"a calibrated model must predict the classes of the model and its scaled probabilities, got another class "
            f"for {count(changed, 'image')} and a difference of {difference:.2g}; nothing was logged of it"
        )
