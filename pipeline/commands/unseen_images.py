"""The images on which a command measures a trained model: none that the model was trained on."""

from collections.abc import Mapping
from typing import Any

from pipeline.data.dataset import Dataset, absolute_path
from pipeline.data.subset import check_not_trained_on, check_same_classes, reload_dataset
from pipeline.runtime.errors import UsageError
from pipeline.tracking.query import TrainingRun


def load_unseen_images(
    training_run: TrainingRun, metadata: Mapping[str, Any], *, dataset: str | None, split_name: str, remedy: str
) -> Dataset:
    """Load the data of a training run again, or other images in the model's size, and check them against the model.

    Args:
        training_run: The run that trained the model.
        metadata: Of the logged model.
        dataset: Name or path of other images.
        split_name: What the model will be measured on: test, validation or all.
        remedy: What to try where the model was trained on those.

    Raises:
        UsageError: They cannot be read, have other classes, or are those that the model was trained on.
    """
    config = training_run.config
    loaded = reload_dataset(
        config.data,
        seed=config.seed,
        dataset=dataset,
        image_size=metadata.get("image_size") if dataset else None,
        split_name=split_name,
    )
    check_not_trained_on(
        loaded,
        split_name,
        fingerprint=training_run.fingerprint,
        has_validation=training_run.has_validation,
        remedy=remedy,
    )
    if dataset is None or absolute_path(dataset) == absolute_path(config.dataset):
        _check_still_unseen(loaded, split_name, training_run)
    if "classes" in metadata:
        check_same_classes(loaded, metadata["classes"])
    return loaded


def _check_still_unseen(dataset: Dataset, split_name: str, training_run: TrainingRun) -> None:
    """Raise UsageError if the run's own data have changed, and the images are not those that were held out of it.

    Splits that the data do not have themselves are made anew of all images, among which one more is enough for others.
    """
    if training_run.fingerprint in {"", dataset.fingerprint}:
        return
    held_out = {"test": dataset.test, "validation": dataset.validation}
    if split_name in held_out and training_run.splits.get(split_name) == held_out[split_name].digest:
        return
    images = "all images" if split_name == "all" else f"the {split_name} images"
    raise UsageError(
        f"images must be others than those that the model was trained on, got {images} of {dataset.name}, its training "
        "data, which have changed since, so that some of these may have been trained on; try a dataset of other images"
    )
