"""The images of a data set with the classes and the shape of a given model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.config.training import DataConfig
from pipeline.data.dataset import Dataset, Split, load_dataset
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import join_names


@dataclass(frozen=True, eq=False)
class Subset:
    """Images of a data set, with labels as positions among the classes of a model."""

    dataset: Dataset
    split: Split
    split_name: str  # test, validation or all
    labels: npt.NDArray[np.int64]  # (n,)

    def __str__(self) -> str:
        split = "all images" if self.split_name == "all" else f"{self.split_name} split"
        return f"{self.dataset.name}, {split}"


def reload_dataset(
    config: DataConfig, *, seed: int, dataset: str | None, image_size: Sequence[int] | None, split_name: str = "test"
) -> Dataset:
    """Load the data set of a training run again, or another one with the run's settings.

    All training images are loaded, however many of them the run used: the other splits do not depend on that.

    Args:
        config: Settings of the run's data.
        seed: Seed of the run.
        dataset: Name or path of another data set.
        image_size: Another (height, width) to resize the images to.
        split_name: What is asked of them: test, validation or all; all images of another data set are not split.

    Raises:
        UsageError: The data cannot be read.
    """
    overrides = {"dataset": dataset, "image_size": tuple(image_size) if image_size else None}
    given: dict[str, object] = {name: value for name, value in overrides.items() if value is not None}
    if dataset is not None:
        # of other images none have been trained on
        given |= {"folds": None, "refit": False}
    return load_dataset(
        config.model_copy(update={"train_examples": None, **given}),
        seed=seed,
        split=dataset is None or split_name != "all",
    )


def build_subset(
    dataset: Dataset, split_name: str, *, classes: Sequence[str], image_shape: tuple[int, int, int]
) -> Subset:
    """Return a split of a data set, or all of its images, with labels as positions among `classes`.

    Args:
        split_name: test, validation or all.
        classes: Classes of the model, in its order.
        image_shape: (height, width, channels) of the model's input.

    Raises:
        UsageError: The data set has other classes or another image shape than the model.
    """
    check_same_classes(dataset, classes)
    _check_same_shape(dataset, image_shape)
    split = select_split(dataset, split_name)
    positions = np.array([classes.index(name) for name in dataset.classes])
    return Subset(dataset, split, split_name, positions[split.labels[split.rows]])


def select_split(dataset: Dataset, split_name: str) -> Split:
    """Return the images of a data set that are in a split: test or validation; or all of them."""
    splits = {
        "test": [dataset.test],
        "validation": [dataset.validation],
        "all": [dataset.train, dataset.validation, dataset.test],
    }
    return replace(dataset.test, rows=np.sort(np.concatenate([split.rows for split in splits[split_name]])))


def check_same_classes(dataset: Dataset, classes: Sequence[str]) -> None:
    """Raise UsageError if the classes of a data set, in any order, are not those of the model."""
    missing = [name for name in classes if name not in dataset.classes]
    extra = [name for name in dataset.classes if name not in classes]
    differences = []
    if missing:
        differences.append(f"lacks {join_names(missing)}")
    if extra:
        differences.append(f"has {join_names(extra)} besides")
    if differences:
        raise UsageError(
            f"the classes of the images must be the model's {len(classes)}, in any order: {dataset.name} "
            f"{' and '.join(differences)}; rename its classes to the model's, or evaluate a model of these classes"
        )


def check_not_trained_on(
    dataset: Dataset, split_name: str, *, fingerprint: str, has_validation: bool, remedy: str
) -> None:
    """Raise UsageError if the images include those that the model was trained on.

    Args:
        dataset: Those to measure the model on.
        split_name: test, validation or all.
        fingerprint: Fingerprint of the data set of the training run.
        has_validation: Whether validation images were held out of the training.
        remedy: What to try instead.
    """
    if dataset.fingerprint != fingerprint or split_name == "test" or (split_name == "validation" and has_validation):
        return
    images = "all images" if split_name == "all" else "the validation images"
    raise UsageError(
        f"images must be others than those that the model was trained on, got {images} of {dataset.name}, its training "
        f"data; try {remedy}"
    )


def _check_same_shape(dataset: Dataset, image_shape: tuple[int, int, int]) -> None:
    if dataset.image_shape == image_shape:
        return
    height, width, channels = image_shape
    if dataset.image_shape[2] == channels:
        remedy = f"try image_size={height},{width}"
    else:
        remedy = f"convert the images to {channels} channel{'s' if channels > 1 else ''}"
    raise UsageError(
        f"images must have the shape that the model takes: {_format_shape(image_shape)}, got "
        f"{_format_shape(dataset.image_shape)} of {dataset.name}; {remedy}"
    )


def _format_shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
