"""Probabilities and true labels -> whether a classifier is as often right as it is sure."""

import numpy as np
import numpy.typing as npt
import pandas as pd

Probabilities = npt.NDArray[np.floating]  # (n, classes), rows sum to 1
Labels = npt.NDArray[np.int64]  # (n,)


def reliability(probabilities: Probabilities, labels: Labels, *, bins: int) -> pd.DataFrame:
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
