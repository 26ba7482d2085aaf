"""Probabilities and true labels -> what a classifier gets right, what it takes for what, and its worst mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

Probabilities = npt.NDArray[np.floating]  # (n, classes), rows sum to 1
Labels = npt.NDArray[np.int64]  # (n,)


def reliability_table(probabilities: Probabilities, labels: Labels, *, bins: int) -> pd.DataFrame:
    """A row a bin of equal width, after Guo et al. 2017 (arXiv 1706.04599), section 2.

    An image's confidence is the highest of its probabilities; it is in the bin with low < confidence <= high.

    Columns: low and high (limits of the confidence), images, confidence (mean) and accuracy (share that was right);
    both are NaN of a bin without images.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.digitize(confidence, edges[1:-1], right=True)
    images = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, weights=values, minlength=bins) / images for values in (confidence, right)]
    return pd.DataFrame(
        {"low": edges[:-1], "high": edges[1:], "images": images, "confidence": means[0], "accuracy": means[1]}
    )


def expected_calibration_error(table: pd.DataFrame) -> float:
    """ECE, from 0 to 1: mean of |accuracy - confidence| over the bins, each by its images (Guo et al. 2017, eq. 3).

    Args:
        table: see `reliability`. The number depends on the bins: compare what was taken over the same.
    """
    gaps = (table["accuracy"] - table["confidence"]).abs().fillna(0.0)
    return float((gaps * table["images"]).sum() / table["images"].sum())


def brier_score(probabilities: Probabilities, labels: Labels) -> float:
    """Mean squared distance of the probabilities from the truth, from 0 to 2 (Brier 1950, eq. 2)."""
    truth = np.eye(probabilities.shape[1])[labels]  # (n, classes)
    return float(((probabilities - truth) ** 2).sum(axis=1).mean())


def cross_entropy(probabilities: Probabilities, labels: Labels) -> float:
    """Mean negative log probability of the truth, in nats; clipped at 1e-7 as Keras does."""
    truth = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(truth, 1e-7, 1.0)).mean())


def accuracy(probabilities: Probabilities, labels: Labels) -> float:
    """Share of images whose most probable class is the truth."""
    return float((probabilities.argmax(axis=1) == labels).mean())


def confusion_matrix(probabilities: Probabilities, labels: Labels) -> npt.NDArray[np.int64]:
    """Counts (classes, classes): row the truth, column the prediction."""
    classes = probabilities.shape[1]
    return np.bincount(labels * classes + probabilities.argmax(axis=1), minlength=classes**2).reshape(classes, classes)


def per_class_table(counts: npt.NDArray[np.int64], *, classes: Sequence[str]) -> pd.DataFrame:
    """A row a class of a confusion matrix: images, recall, precision, F1 and what it is most often taken for.

    A ratio over no image is NaN; `mistaken_for` is empty where nothing was mistaken.
    """
    right = counts.diagonal().astype(float)
    wrong = counts - np.diag(counts.diagonal())
    with np.errstate(invalid="ignore"):
        recall, precision = right / counts.sum(axis=1), right / counts.sum(axis=0)
        f1 = 2 * right / (counts.sum(axis=1) + counts.sum(axis=0))
    names = np.array(classes, dtype=object)
    return pd.DataFrame(
        {
            "class": names,
            "images": counts.sum(axis=1),
            "recall": recall,
            "precision": precision,
            "f1": f1,
            "mistaken_for": np.where(wrong.any(axis=1), names[wrong.argmax(axis=1)], ""),
        }
    )


def predictions_table(probabilities: Probabilities, labels: Labels, *, images: npt.NDArray[np.bytes_]) -> pd.DataFrame:
    """A row an image, in the order given: what lets two models be compared image by image.

    Columns: image (16 hexadecimal digits of its pixels, whose digests (n,) are given), label and predicted (positions
    among the classes), probability (that the label was given).
    """
    return pd.DataFrame(
        {
            "image": [digest.hex()[:16] for digest in images.tolist()],
            "label": labels,
            "predicted": probabilities.argmax(axis=1),
            "probability": probabilities[np.arange(len(labels)), labels].round(6),
        }
    )


@dataclass(frozen=True)
class ConfidentErrors:
    """Wrong predictions, the most confident first: positions in the split, labels and the probability given."""

    positions: npt.NDArray[np.int64]
    true: Labels
    predicted: Labels
    confidence: npt.NDArray[np.float32]


def most_confident_errors(probabilities: Probabilities, labels: Labels, *, most: int) -> ConfidentErrors:
    """At most so many of the wrong predictions, the most confident first."""
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    return ConfidentErrors(worst, labels[worst], predicted[worst], confidence[worst])


def is_correct(table: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Whether each test image was recognized, (n,)."""
    return (table["label"] == table["predicted"]).to_numpy()
