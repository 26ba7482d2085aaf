"""The images that a model is evaluated on: of its classes, in its order, and of its shape."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.config.commands import EvaluateConfig
from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import Dataset, Split, load_dataset
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import join_names

NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_.-]+")  # of a metric or a folder
NAME = 60  # characters


@dataclass(frozen=True, eq=False)
class Subset:
    """Images, and their labels as positions among the model's classes."""

    data: Dataset
    split: Split
    which: str  # test, validation or all
    labels: npt.NDArray[np.int64]  # (n,)

    def __str__(self) -> str:
        return f"{self.data.name}, {'all images' if self.which == 'all' else f'{self.which} split'}"


def load_subset_data(config: TrainingConfig, asked: EvaluateConfig) -> Dataset:
    """The data that are asked for; what is not asked is as the model's run had it.

    Args:
        config: of the run that trained the model.

    Raises:
        UsageError: the data cannot be read.
    """
    changes = {"dataset": asked.dataset, "image_size": asked.image_size}
    given = {name: value for name, value in changes.items() if value is not None}
    # how many of the training images the run used is nothing to the other splits
    return load_dataset(config.model_copy(update={"train_examples": None, **given}))


def build_subset(data: Dataset, which: str, *, classes: Sequence[str], image_shape: tuple[int, int, int]) -> Subset:
    """A split of the data, or all of them, for a model.

    Args:
        which: test, validation or all.
        classes: of the model, in its order.
        image_shape: (height, width, channels) that it takes.

    Raises:
        UsageError: the data have other classes or another shape than the model.
    """
    check_same_classes(data, classes)
    _refuse_other_shape(data, image_shape)
    splits = {"test": [data.test], "validation": [data.validation], "all": [data.train, data.validation, data.test]}
    split = replace(data.test, rows=np.sort(np.concatenate([one.rows for one in splits[which]])))
    places = np.array([classes.index(name) for name in data.classes])
    return Subset(data, split, which, places[split.labels[split.rows]])


def plain_artifact_dir(data: str, which: str) -> str:
    """Where an evaluation lies in its run: <dataset>-<split>, as a part of metrics' names and of artifacts' paths."""
    return f"{NOT_IN_A_NAME.sub('-', data).strip('-.')[:NAME] or 'data'}-{which}"


def artifact_dir(subject: Subset, *, taken: Mapping[str, str]) -> str:
    """The plain place, or one with a part of the images' fingerprint where other images have that.

    Args:
        taken: fingerprints by the places that some data have.
    """
    fingerprint = subject.data.fingerprint
    plain = plain_artifact_dir(subject.data.name, subject.which)
    return plain if taken.get(plain, fingerprint) == fingerprint else f"{plain}-{fingerprint[:8]}"


def check_same_classes(data: Dataset, classes: Sequence[str]) -> None:
    """Raise UsageError where the data have other classes than the model, in whatever order."""
    missing = [name for name in classes if name not in data.classes]
    besides = [name for name in data.classes if name not in classes]
    if missing or besides:
        faults = [f"lacks {join_names(missing)}"] * bool(missing) + [f"has {join_names(besides)} besides"] * bool(
            besides
        )
        raise UsageError(
            f"the classes of the images must be the model's {len(classes)}, in any order: {data.name} "
            f"{' and '.join(faults)}; name its classes as the model's, or evaluate a model of these"
        )


def check_not_trained_on(data: Dataset, which: str, *, fingerprint: str) -> None:
    """Raise UsageError where all images are asked for, and they are those that the model's run had."""
    if which == "all" and data.fingerprint == fingerprint:
        raise UsageError(
            f"split must be test or validation of the data that the model was trained on, got all of {data.name}; "
            "name another dataset"
        )


def _refuse_other_shape(data: Dataset, image_shape: tuple[int, int, int]) -> None:
    if data.image_shape == image_shape:
        return
    height, width, channels = image_shape
    cure = f"try image_size={height},{width}"
    if data.image_shape[2] != channels:
        cure = f"convert the images to {channels} channel{'s' if channels > 1 else ''}"
    raise UsageError(
        f"images must have the shape that the model takes: {_sides(image_shape)}, got {_sides(data.image_shape)} of "
        f"{data.name}; {cure}"
    )


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
