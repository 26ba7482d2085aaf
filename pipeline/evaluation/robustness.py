"""Evaluation of a model on the images of a split: its metrics on clean images and its accuracy under corruptions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.evaluation import metrics
from pipeline.evaluation.corruptions import CORRUPTIONS, STRENGTHS, Corruption, Images
from pipeline.runtime.text import format_share

BINS = 15  # of confidence, as in Guo et al. 2017
VALUES = 2**22  # pixel values at a time, so that no data set has to fit into memory
SEED = 0  # of the corruptions


class ImageSource(Protocol):
    """The images of one data set, and which of them belong to a split; `pipeline.data.dataset.Split` is one."""

    @property
    def images(self) -> np.ndarray: ...  # (n, h, w, c) uint8

    @property
    def image_digests(self) -> np.ndarray: ...  # (n,)

    @property
    def rows(self) -> np.ndarray: ...  # (m,) positions of the images of the split

    def __len__(self) -> int: ...

    def file_names(self) -> list[str]:
        """Return the names of the images' files (m,), empty where there are none."""
        ...

    def take(self, positions: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """Copy images (b, h, w, c) uint8 and labels (b,) int64 at positions from 0 to m - 1."""
        ...


Predict = Callable[[Images], npt.NDArray[np.float32]]  # (b, h, w, c) uint8 -> (b, classes)
SeededChange = Callable[[Images, Sequence[int]], Images]  # images and a seed -> changed images


@dataclass(frozen=True)
class EvaluationResult:
    """All that an evaluation has measured."""

    metrics: dict[str, float]  # accuracy, nll (nats), ece, brier_score, mean_confidence, mean_corruption_accuracy
    reliability: pd.DataFrame  # see `metrics.reliability_table`
    corruptions: pd.DataFrame  # columns corruption, strength and accuracy; the first row, none and 0, is clean
    predictions: pd.DataFrame  # see `metrics.predictions_table`
    confusion: npt.NDArray[np.int64]  # (classes, classes)
    examples: Images  # (corruptions, 1 + strengths, h, w, c): one image, clean and under each corruption
    probabilities: npt.NDArray[np.float32]  # (n, classes) of the clean images


def evaluate_robustness(
    predict: Predict,
    split: ImageSource,
    labels: metrics.Labels,
    *,
    classes: Sequence[str],
    corrupted_images: int | None,
    report: Callable[[str], None],
) -> EvaluationResult:
    """Predict all images clean, and all or some of them under each corruption.

    Args:
        predict: The model.
        split: The images.
        labels: (n,) of the split's images, as indices of the model's classes.
        classes: Names of the model's classes, in order.
        corrupted_images: Number of images to corrupt at most, evenly chosen; None for all.
        report: Called with a line after each corruption.
    """
    everything = np.arange(len(split))
    probabilities = predict_split(predict, split)
    reliability = metrics.reliability_table(probabilities, labels, bins=BINS)
    chosen = everything if corrupted_images is None else evenly_spaced(len(split), corrupted_images)
    rows = [("none", 0, metrics.accuracy(probabilities[chosen], labels[chosen]))]
    for row in _corrupted_accuracies(predict, split, labels, chosen):
        rows.append(row)
        corruption, strength, accuracy = row
        report(f"{corruption:<17} strength {strength}: accuracy {format_share(accuracy)}")
    corruptions = pd.DataFrame(rows, columns=["corruption", "strength", "accuracy"])
    return EvaluationResult(
        metrics={
            "accuracy": metrics.accuracy(probabilities, labels),
            "nll": metrics.cross_entropy(probabilities, labels),
            "ece": metrics.expected_calibration_error(reliability),
            "brier_score": metrics.brier_score(probabilities, labels),
            "mean_confidence": float(probabilities.max(axis=1).mean()),
            "mean_corruption_accuracy": float(corruptions.loc[corruptions["strength"] > 0, "accuracy"].mean()),
        },
        reliability=reliability,
        corruptions=corruptions,
        predictions=metrics.predictions_table(
            probabilities,
            labels,
            images=split.image_digests[split.rows],
            files=split.file_names(),
            classes=classes,
        ),
        confusion=metrics.confusion_matrix(probabilities, labels),
        examples=_corrupted_examples(split),
        probabilities=probabilities,
    )


def predict_split(predict: Predict, split: ImageSource) -> npt.NDArray[np.float32]:
    """Return the probabilities (n, classes) of all images of a split."""
    return _predict_at(predict, split, np.arange(len(split)))


def _corrupted_accuracies(
    predict: Predict, split: ImageSource, labels: metrics.Labels, positions: npt.NDArray[np.int64]
) -> Iterator[tuple[str, int, float]]:
    """Yield (corruption, strength, accuracy) for every corruption at every strength."""
    for name, corrupt in CORRUPTIONS.items():
        for strength in STRENGTHS:
            probabilities = _predict_at(predict, split, positions, _with_strength(corrupt, strength))
            yield name, strength, metrics.accuracy(probabilities, labels[positions])


def _with_strength(corrupt: Corruption, strength: int) -> SeededChange:
    return lambda images, seed: corrupt(images, strength, seed)


def _corrupted_examples(split: ImageSource) -> Images:
    """Return the image in the middle of the split, clean and under each corruption at each strength."""
    clean = split.take(np.array([len(split) // 2]))[0]  # (1, h, w, c)
    rows = [
        [clean, *(corrupt(clean, strength, [SEED, 0]) for strength in STRENGTHS)] for corrupt in CORRUPTIONS.values()
    ]
    return np.concatenate([np.stack(row, axis=1) for row in rows])


def _predict_at(
    predict: Predict,
    split: ImageSource,
    positions: npt.NDArray[np.int64],
    change: SeededChange = lambda images, seed: images,
) -> npt.NDArray[np.float32]:
    """Return the probabilities (n, classes) of some images, predicted in batches.

    The seed of a batch is the position where it begins, so that all strengths draw the same noise.
    """
    batch_size = max(1, VALUES // prod(split.images.shape[1:]))
    return np.concatenate(
        [
            predict(change(split.take(positions[start : start + batch_size])[0], [SEED, start]))
            for start in range(0, len(positions), batch_size)
        ]
    )


def evenly_spaced(number: int, most: int) -> npt.NDArray[np.int64]:
    """Return at most `most` of the positions below `number`, as far apart as possible: folders are sorted by class."""
    size = min(number, most)
    return np.arange(size) * number // size
