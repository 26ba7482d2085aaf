"""The images on which a command measures a trained model: none that the model was trained on."""

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.data.dataset import Dataset, absolute_path, load_dataset
from pipeline.data.subset import build_subset, check_not_trained_on, reload_dataset, select_split
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import count, printable
from pipeline.tracking.client import Run
from pipeline.tracking.query import TrainingRun
from pipeline.tracking.test_set_access import access_tags

# of the images to measure on, which may be among those of the training, as two pictures may be alike by chance
MAX_TRAINED_SHARE = 0.01
# in MLflow's schema of a data set, see `TrackedRun.log_dataset`
LOGGED_SHAPE = re.compile(r'"shape": \[-1, (\d+), (\d+), (\d+)\]')

log = logging.getLogger(__name__)


def load_unseen_images(
    training_run: TrainingRun, metadata: Mapping[str, Any], *, dataset: str | None, split_name: str, remedy: str
) -> Dataset:
    """Load the data of a training run again, or other images in the model's size, and check them against the model.

    Other images are compared with those of the training, as far as these can be read and have not changed.

    Args:
        training_run: The run that trained the model.
        metadata: Of the logged model.
        dataset: Name or path of other images.
        split_name: What the model will be measured on: test, validation or all.
        remedy: What to try where the model was trained on those.

    Raises:
        UsageError: They cannot be read, have other classes or another shape than the model takes, or are those that the
            model was trained on.
    """
    config = training_run.config
    loaded = reload_dataset(
        config.data,
        seed=config.seed,
        dataset=dataset,
        image_size=metadata.get("image_size") if dataset else None,
        split_name=split_name,
    )
    if "classes" in metadata:
        # before the training's images are read, which may be many, or have to be downloaded
        image_shape = _logged_image_shape(training_run.run) or loaded.image_shape
        build_subset(loaded, split_name, classes=metadata["classes"], image_shape=image_shape)
    check_not_trained_on(
        loaded,
        split_name,
        fingerprint=training_run.fingerprint,
        has_validation=training_run.has_validation,
        remedy=remedy,
    )
    if held_out_split(loaded, split_name, training_run) is None:
        if dataset is None or _same_place(dataset, config.dataset):
            _check_unchanged(loaded, split_name, training_run)
        else:
            _check_not_among_trained(loaded, split_name, training_run)
    return loaded


def held_out_split(dataset: Dataset, split_name: str, training_run: TrainingRun) -> str | None:
    """Return which split of a training run has just these images: test or validation.

    They are the same in a folder of their own, all of which are evaluated: flowers/test of flowers.

    Args:
        dataset: The run's own or another one.
        split_name: Which of its images: test, validation or all.
        training_run: The run that trained the model.

    Returns:
        None if they are others, or validation images that the model was trained on.
    """
    digest = select_split(dataset, split_name).digest
    for name in ("test", "validation") if training_run.has_validation else ("test",):
        # a run may have logged the fingerprint of its data only
        is_own = split_name == name and dataset.fingerprint == training_run.fingerprint
        if is_own or digest == training_run.splits.get(name):
            return name
    return None


def tags_of_test_access(dataset: Dataset, split_name: str, training_run: TrainingRun, *, by: str) -> dict[str, str]:
    """Return the tags that record an access to the run's test images; empty if these images are others.

    Args:
        dataset: The run's own or another one.
        split_name: Which of its images: test, validation or all.
        training_run: The run that trained the model, which gets the tags.
        by: Id of the run that measures the model on them.
    """
    if held_out_split(dataset, split_name, training_run) != "test":
        return {}
    run = training_run.run
    tested = "test_accuracy" in run.data.metrics
    return access_tags(run.data.tags, by=by, run_id=run.info.run_id, tested=tested)


def _logged_image_shape(run: Run) -> tuple[int, int, int] | None:
    """Return the (height, width, channels) that a run has logged of its data; None where a run above it has."""
    for one in run.inputs.dataset_inputs if run.inputs else ():
        if found := LOGGED_SHAPE.search(one.dataset.schema or ""):
            height, width, channels = map(int, found.groups())
            return height, width, channels
    return None


def _same_place(dataset: str, other: str) -> bool:
    """Return whether two data sets are the same name, or lead to the same folder or file."""
    return os.path.realpath(absolute_path(dataset)) == os.path.realpath(absolute_path(other))


def _check_unchanged(dataset: Dataset, split_name: str, training_run: TrainingRun) -> None:
    """Raise UsageError if the run's own data have changed, so that their splits may be others.

    Splits that the data do not have themselves are made anew of all images, among which one more is enough for others.
    """
    if training_run.fingerprint in {"", dataset.fingerprint}:
        return
    images = "all images" if split_name == "all" else f"the {split_name} images"
    raise UsageError(
        f"images must be others than those that the model was trained on, got {images} of {dataset.name}, its training "
        "data, which have changed since, so that some of these may have been trained on; try a dataset of other images"
    )


def _check_not_among_trained(dataset: Dataset, split_name: str, training_run: TrainingRun) -> None:
    """Raise UsageError if other images include more than a few that the model was trained on; warn of these few.

    Images are the same if their pixels are, once they have the model's size. Each counts once, however often it is
    there: empty pictures are all alike.
    """
    config = training_run.config
    try:
        own = load_dataset(config.data, seed=config.seed)
    except UsageError as error:
        _warn_not_compared(dataset, f"they cannot be read: {error}")
        return
    if training_run.fingerprint not in {"", own.fingerprint}:
        _warn_not_compared(dataset, f"{own.name} is not as it was when the run was trained on it")
        return
    if own.image_shape != dataset.image_shape:
        # the model does not take them
        return
    trained = [own.train] if training_run.has_validation else [own.train, own.validation]
    known = np.concatenate([split.image_digests[split.rows] for split in trained])
    split = select_split(dataset, split_name)
    images, positions = np.unique(split.image_digests[split.rows], return_index=True)
    found = np.sort(positions[np.isin(images, known)])
    if not len(found):
        return
    (file,) = split.file_names(found[:1])
    example = f", such as {printable(file)}" if file else ""
    share = f"{len(found):,} of {count(len(images), 'different image')} of {dataset.name}"
    if len(found) > MAX_TRAINED_SHARE * len(images):
        raise UsageError(
            f"images must be others than those that the model was trained on, got {share} that it was trained on"
            f"{example}; remove these, or try a dataset of other images"
        )
    log.warning("the model was trained on %s%s", share, example)


def _warn_not_compared(dataset: Dataset, reason: str) -> None:
    log.warning(
        "whether the model was trained on images of %s is not known, as its own data cannot be compared: %s",
        dataset.name,
        reason,
    )
