"""Metrics of a classifier: probabilities and labels -> accuracy, loss, calibration, confusion, worst errors."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.config.monitor import Monitor

Probabilities = npt.NDArray[np.floating]  # (n, classes), rows sum to 1
Labels = npt.NDArray[np.int64]  # (n,)

VIEW_IMAGES = 1000
LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)  # of a loss: a probability may be 0 in single precision
RECALL = "recall/"  # before the name of a class in the name of a metric; the slash makes them a group in MLflow's pages
CLASS_CHARACTERS = 100  # of it; MLflow takes 250 characters in all


class ClassCounts(NamedTuple):
    """Number of images by class, (..., classes) each: the margins and the diagonal of a confusion matrix."""

    images: npt.NDArray[np.int64]  # with the class as their label
    predicted: npt.NDArray[np.int64]  # as the class
    correct: npt.NDArray[np.int64]

    @classmethod
    def of_confusion(cls, counts: npt.NDArray[np.int64]) -> "ClassCounts":
        """Return those of a confusion matrix."""
        return cls(counts.sum(axis=1), counts.sum(axis=0), counts.diagonal())


def accuracy(probabilities: Probabilities, labels: Labels) -> float:
    """Return the share of images whose most probable class is the label."""
    return float((probabilities.argmax(axis=1) == labels).mean())


def balanced_accuracy(counts: ClassCounts) -> npt.NDArray[np.float64]:
    """Return the mean recall of the classes that have images, (...,): each class counts alike."""
    return _mean_of_classes(counts.correct / np.maximum(counts.images, 1), counts)


def macro_f1(counts: ClassCounts) -> npt.NDArray[np.float64]:
    """Return the mean F1 of the classes that have images, (...,)."""
    return _mean_of_classes(2 * counts.correct / np.maximum(counts.images + counts.predicted, 1), counts)


def _mean_of_classes(values: npt.NDArray[np.float64], counts: ClassCounts) -> npt.NDArray[np.float64]:
    known = counts.images > 0
    return np.sum(values * known, axis=-1) / np.sum(known, axis=-1)


def recalls(counts: ClassCounts, *, classes: Sequence[str]) -> dict[str, float]:
    """Return the recall of each class that has images, by a name that MLflow takes for a metric.

    Characters that it does not take become underscores; classes that share a name then are told apart by their label.
    """
    names = [RECALL + re.sub(r"[^\w -]", "_", name)[:CLASS_CHARACTERS] for name in classes]
    # a store may take no notice of case
    times = Counter(name.lower() for name in names)
    return {
        f"{name}_{label}" if times[name.lower()] > 1 else name: float(counts.correct[label] / counts.images[label])
        for label, name in enumerate(names)
        if counts.images[label]
    }


def guessing(metric: Monitor, labels: Labels) -> float:
    """Return what a classifier that ignores the images reaches by a metric, plus two standard errors but for the loss.

    Its accuracy is that of naming the most frequent class, its balanced accuracy and macro F1 those of drawing a class
    for each image. Its loss is that of giving each class its share of the images: their entropy.
    """
    images = np.bincount(labels)
    images = images[images > 0]
    shares = images / len(labels)
    if metric == "val_loss":
        return float(-(shares * np.log(shares)).sum())
    if metric == "val_accuracy":
        share = shares.max()
        return float(share + 2 * np.sqrt(share * (1 - share) / len(labels)))
    share = 1 / len(images)
    return float(share + 2 * np.sqrt(share * (1 - share) * (1 / images).sum()) * share)


def cross_entropy(probabilities: Probabilities, labels: Labels) -> float:
    """Return the mean negative log probability of the label, in nats, as Keras computes it from logits.

    A probability that is 0 in single precision counts as the least number there, which is a loss of 87.3.
    """
    of_label = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(of_label, LEAST_PROBABILITY, 1.0)).mean())


def brier_score(probabilities: Probabilities, labels: Labels) -> float:
    """Return the mean squared distance of the probabilities from the one-hot labels, 0 to 2 (Brier 1950, eq. 2)."""
    one_hot = np.eye(probabilities.shape[1])[labels]  # (n, classes)
    return float(((probabilities - one_hot) ** 2).sum(axis=1).mean())


def reliability_table(probabilities: Probabilities, labels: Labels, *, bins: int) -> pd.DataFrame:
    """Compare the model's confidence with its accuracy, in bins of equal width (Guo et al. 2017, arXiv 1706.04599, 2).

    The confidence in an image is the highest of its probabilities; it falls into the bin with low < confidence <= high.

    Returns:
        A row a bin with the columns low and high (limits of the confidence), images (their number), confidence (mean)
        and accuracy; the last two are NaN in a bin without images.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    bin_of_image = np.digitize(confidence, edges[1:-1], right=True)
    images = np.bincount(bin_of_image, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bin_of_image, weights=values, minlength=bins) / images for values in (confidence, correct)]
    return pd.DataFrame(
        {"low": edges[:-1], "high": edges[1:], "images": images, "confidence": means[0], "accuracy": means[1]}
    )


def expected_calibration_error(table: pd.DataFrame) -> float:
    """Return the ECE, from 0 to 1: the mean of |accuracy - confidence| over the images (Guo et al. 2017, eq. 3).

    Args:
        table: See `reliability_table`. The ECE depends on the bins: compare values over the same bins only.
    """
    gaps = (table["accuracy"] - table["confidence"]).abs().fillna(0.0)
    return float((gaps * table["images"]).sum() / table["images"].sum())


def confusion_matrix(probabilities: Probabilities, labels: Labels) -> npt.NDArray[np.int64]:
    """Return the number of images by label (row) and predicted class (column), (classes, classes)."""
    classes = probabilities.shape[1]
    return np.bincount(labels * classes + probabilities.argmax(axis=1), minlength=classes**2).reshape(classes, classes)


def per_class_table(counts: npt.NDArray[np.int64], *, classes: Sequence[str]) -> pd.DataFrame:
    """Return images, recall, precision, F1 and the most frequent confusion of each class of a confusion matrix.

    A ratio over no image is NaN; `mistaken_for` is empty for a class of which no image was misclassified.
    """
    correct = counts.diagonal().astype(float)
    wrong = counts - np.diag(counts.diagonal())
    with np.errstate(invalid="ignore"):
        recall, precision = correct / counts.sum(axis=1), correct / counts.sum(axis=0)
        f1 = 2 * correct / (counts.sum(axis=1) + counts.sum(axis=0))
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


def predictions_table(
    probabilities: Probabilities,
    labels: Labels,
    *,
    images: npt.NDArray[np.bytes_],
    files: Sequence[str],
    classes: Sequence[str],
) -> pd.DataFrame:
    """Return a row for each image, in the order given, so that two models can be compared image by image.

    Args:
        probabilities: Of the model.
        labels: The true ones.
        images: Digests (n,) of the images' pixels.
        files: Names (n,) of the images' files, empty where there are none.
        classes: Names by label.

    Returns:
        Columns file, image (the first 16 hexadecimal digits of the digest), label and predicted (positions of classes),
        class and predicted_class (their names), probability_of_class and probability_of_predicted_class.
    """
    names = np.array(classes, dtype=object)
    predicted = probabilities.argmax(axis=1)
    row = np.arange(len(labels))
    return pd.DataFrame(
        {
            "file": np.array(files, dtype=object),
            "image": [digest.hex()[:16] for digest in images.tolist()],
            "label": labels,
            "predicted": predicted,
            "class": names[labels],
            "predicted_class": names[predicted],
            "probability_of_class": _six_digits(probabilities[row, labels]),
            "probability_of_predicted_class": _six_digits(probabilities[row, predicted]),
        }
    )


def per_class_view(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of classes as MLflow's evaluation view takes it: it opens with the second column of each run."""
    return table[["class", "recall", "precision", "f1", "mistaken_for", "images"]].round(4)


def predictions_view(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of predictions as MLflow's evaluation view takes it, with at most VIEW_IMAGES images.

    They are those with the lowest digests, and so the same of every model. The first column names the image, by its
    file where it has one; the second is what the model predicted.
    """
    view = table.sort_values("image", kind="stable").head(VIEW_IMAGES)
    names = ["file", "image"] if table["file"].any() else ["image"]
    probabilities = ["probability_of_predicted_class", "probability_of_class"]
    return view[[names[0], "predicted_class", "class", *probabilities, *names[1:]]]


def _six_digits(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return values with six significant digits: the loss of a probability that is nearly 0 is not to be lost."""
    return np.array([float(f"{value:.6g}") for value in values])


def is_correct(table: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Return for each row of a table of predictions whether the image was classified correctly, (n,)."""
    return (table["label"] == table["predicted"]).to_numpy()


@dataclass(frozen=True)
class ConfidentErrors:
    """Wrong predictions, the most confident first."""

    positions: npt.NDArray[np.int64]  # in the split
    true: Labels
    predicted: Labels
    confidence: npt.NDArray[np.float32]  # probability of the predicted class


def most_confident_errors(probabilities: Probabilities, labels: Labels, *, most: int) -> ConfidentErrors:
    """Return at most `most` wrong predictions, the most confident first."""
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    return ConfidentErrors(worst, labels[worst], predicted[worst], confidence[worst])


def most_confident_successes(probabilities: Probabilities, labels: Labels, *, most: int) -> npt.NDArray[np.int64]:
    """Return the positions of at most `most` right predictions: the most confident of each class, then the second ones.

    By confidence alone they might all be of one class.
    """
    confidence = probabilities.max(axis=1)
    right = np.flatnonzero(probabilities.argmax(axis=1) == labels)
    right = right[np.argsort(-confidence[right], kind="stable")]
    seen: Counter[int] = Counter()
    rounds = []
    for label in labels[right].tolist():
        rounds.append(seen[label])
        seen[label] += 1
    return right[np.argsort(rounds, kind="stable")][:most].astype(np.int64)
