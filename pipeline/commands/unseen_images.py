"""The images on which a command measures a trained model: none that the model was trained on."""

from collections.abc import Mapping
from typing import Any

from pipeline.data.dataset import Dataset
from pipeline.data.subset import check_not_trained_on, check_same_classes, reload_dataset
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
    if "classes" in metadata:
        check_same_classes(loaded, metadata["classes"])
    return loaded
