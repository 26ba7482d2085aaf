"""A model's probabilities for some images, clean and spoilt -> what an evaluation says of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.evaluation import metrics
from pipeline.evaluation.corruptions import CORRUPTIONS, STRENGTHS, Corruption, Images

BINS = 15  # of confidence, as in Guo et al. 2017
VALUES = 2**22  # pixel values at a time, so that no data set need fit into memory
SEED = 0  # of the corruptions


class ImageSource(Protocol):
    """Images of one data set, and which of them are meant: `pipeline.data.dataset.Split` is one."""

    @property
    def images(self) -> np.ndarray: ...  # (n, h, w, c) uint8

    @property
    def image_digests(self) -> np.ndarray: ...  # (n,)

    @property
    def rows(self) -> np.ndarray: ...  # (m,) positions of those that are meant

    def __len__(self) -> int: ...

    def take(self, positions: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """Copy images (b, h, w, c) uint8 and labels (b,) int64 at positions from 0 to m - 1."""
        ...


Predict = Callable[[Images], npt.NDArray[np.float32]]  # (b, h, w, c) uint8 -> (b, classes)
Change = Callable[[Images, Sequence[int]], Images]  # images and a seed


@dataclass(frozen=True)
class EvaluationResult:
    """What came of an evaluation."""

    metrics: dict[str, float]  # accuracy, nll (nats), ece, brier_score, mean_confidence, mean_corruption_accuracy
    reliability: pd.DataFrame  # see `calibration.reliability`
    corruptions: pd.DataFrame  # columns corruption, strength and accuracy; the first row, none and 0, is clean
    predictions: pd.DataFrame  # see `scoring.predictions`
    confusion: npt.NDArray[np.int64]  # (classes, classes)
    examples: Images  # (corruptions, 1 + strengths, h, w, c): one image, clean and as each corruption leaves it


def evaluate_robustness(
    predict: Predict,
    split: ImageSource,
    labels: metrics.Labels,
    *,
    corrupted_images: int | None,
    report: Callable[[str], None],
) -> EvaluationResult:
    """Predict all images clean, and all or some of them under each corruption.

    Args:
        labels: (n,) of the split's images, as positions among the model's classes.
        corrupted_images: at most so many, evenly chosen; None: all.
        report: called with a line after each corruption.
    """
    every = np.arange(len(split))
    probabilities = _probabilities(predict, split, every)
    bins = metrics.reliability_table(probabilities, labels, bins=BINS)
    some = every if corrupted_images is None else _evenly(len(split), corrupted_images)
    rows = [("none", 0, metrics.accuracy(probabilities[some], labels[some]))]
    for row in _corrupted(predict, split, labels, some):
        rows.append(row)
        report("{:<17} strength {}: accuracy {:.2%}".format(*row))
    table = pd.DataFrame(rows, columns=["corruption", "strength", "accuracy"])
    return EvaluationResult(
        {
            "accuracy": metrics.accuracy(probabilities, labels),
            "nll": metrics.cross_entropy(probabilities, labels),
            "ece": metrics.expected_calibration_error(bins),
            "brier_score": metrics.brier_score(probabilities, labels),
            "mean_confidence": float(probabilities.max(axis=1).mean()),
            "mean_corruption_accuracy": float(table.loc[table["strength"] > 0, "accuracy"].mean()),
        },
        bins,
        table,
        metrics.predictions_table(probabilities, labels, images=split.image_digests[split.rows]),
        metrics.confusion_matrix(probabilities, labels),
        _examples(split),
    )


def _corrupted(
    predict: Predict, split: ImageSource, labels: metrics.Labels, positions: npt.NDArray[np.int64]
) -> Iterator[tuple[str, int, float]]:
    """(corruption, strength, accuracy) of every corruption at every strength."""
    for name, corrupt in CORRUPTIONS.items():
        for strength in STRENGTHS:
            probabilities = _probabilities(predict, split, positions, _at(corrupt, strength))
            yield name, strength, metrics.accuracy(probabilities, labels[positions])


def _at(corrupt: Corruption, strength: int) -> Change:
    return lambda images, seed: corrupt(images, strength, seed)


def _examples(split: ImageSource) -> Images:
    clean = split.take(np.array([len(split) // 2]))[0]  # (1, h, w, c)
    rows = [[clean, *(corrupt(clean, by, [SEED, 0]) for by in STRENGTHS)] for corrupt in CORRUPTIONS.values()]
    return np.concatenate([np.stack(row, axis=1) for row in rows])


def _probabilities(
    predict: Predict,
    split: ImageSource,
    positions: npt.NDArray[np.int64],
    change: Change = lambda images, seed: images,
) -> npt.NDArray[np.float32]:
    """(n, classes). The seed of a batch is where it begins, so that it is the same at all strengths."""
    at_once = max(1, VALUES // prod(split.images.shape[1:]))
    return np.concatenate(
        [
            predict(change(split.take(positions[start : start + at_once])[0], [SEED, start]))
            for start in range(0, len(positions), at_once)
        ]
    )


def _evenly(number: int, most: int) -> npt.NDArray[np.int64]:
    """At most so many of the positions below `number`, as far apart as can be: folders are sorted by class."""
    many = min(number, most)
    return np.arange(many) * number // many
