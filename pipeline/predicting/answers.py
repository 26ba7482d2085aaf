"""Image files -> a row each: what the model takes it for, or why it cannot be read."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.images.pixels import read_batch

if TYPE_CHECKING:
    from pipeline.logged_model import LoggedModel

BATCH = 64  # images in memory at a time
TOP = 3  # classes that are told of each


class Answer(NamedTuple):
    """What came of a file."""

    file: str
    best: list[tuple[int, float]]  # the most probable classes, the first first: position and probability
    fault: str  # why it cannot be read, or nothing


def answers(model: "LoggedModel", files: Sequence[str]) -> Iterator[Answer]:
    """An answer for each file, in order; each image is stretched to the model's size, as in training."""
    for start in range(0, len(files), BATCH):
        some = files[start : start + BATCH]
        batch = read_batch(some, model.image_shape, True)
        faults = dict(batch.faults)
        probabilities = np.asarray(model.model.predict_on_batch(batch.images.astype(np.float32)))  # (b, classes)
        for file, row in zip(some, probabilities, strict=True):
            yield Answer(file, [], faults[file]) if file in faults else Answer(file, _best(row), "")


def _best(row: npt.NDArray[np.float32]) -> list[tuple[int, float]]:
    return [(int(place), float(row[place])) for place in np.argsort(-row, kind="stable")[:TOP]]
