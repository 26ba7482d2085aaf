"""The paired bootstrap over test images: how far a metric of one model, or its difference to another's, may be luck.

Images are drawn with replacement (Efron and Tibshirani 1993, chapter 6), the same ones for every model of the same
labels, so that differences are paired. A class that is not among them does not count, as in the metrics themselves:
a difference that rests on two or three images of a rare class is then within noise.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.evaluation import metrics
from pipeline.evaluation.metrics import ClassCounts

RESAMPLES = 2000
SEED = 0
PART = 100  # resamples whose losses are computed together
PROBABILITY = "probability_of_class"  # the column of a table of predictions that a loss needs


class Interval(NamedTuple):
    """The limits of an interval."""

    low: float
    high: float


def measure(metric: str, table: pd.DataFrame) -> float:
    """Return a metric, with or without `test_` or `val_` before it, of a table of predictions."""
    return float(_measure(metric, table, np.ones((len(table), 1), np.uint8))[0])


def resample(metric: str, table: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return a metric on each resample of the images of a table of predictions, (RESAMPLES,).

    Args:
        metric: accuracy, balanced_accuracy, macro_f1 or loss, with or without `test_` or `val_` before it.
        table: A row an image, see `predictions_table`.
    """
    return _measure(metric, table, _weights(len(table)))


def percentile_interval(values: npt.NDArray[np.float64]) -> Interval:
    """Return the interval in which the middle 95 % of resampled values lie."""
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))


def p_value(differences: npt.NDArray[np.float64]) -> float:
    """Return the two-sided p-value of a difference between two models, from its values on each resample."""
    least = min((differences <= 0).sum(), (differences >= 0).sum())
    # the images as they are count as one resample, so that no p-value is 0
    return float(min(1.0, 2 * (1 + least) / (1 + len(differences))))


def _measure(metric: str, table: pd.DataFrame, weights: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return a metric for each column of weights (n, resamples) of the images."""
    name = metric.removeprefix("test_").removeprefix("val_")
    if name == "loss":
        losses = -np.log(np.clip(table[PROBABILITY].to_numpy(), metrics.LEAST_PROBABILITY, 1))
        # some resamples at a time, as NumPy makes numbers of 8 bytes of their weights
        parts = np.array_split(weights, max(1, weights.shape[1] // PART), axis=1)
        return np.concatenate([losses @ part for part in parts]) / len(table)
    label, predicted = table["label"].to_numpy(), table["predicted"].to_numpy()
    correct = label == predicted
    if name == "accuracy":
        return weights[correct].sum(axis=0, dtype=np.int64) / len(table)
    classes = 1 + max(label.max(), predicted.max())

    def by_class(positions: npt.NDArray, of: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Return the number of images by class, (resamples, classes)."""
        numbers = [weights[of & (positions == one)].sum(axis=0, dtype=np.int64) for one in range(classes)]
        return np.stack(numbers, axis=1)

    every = np.ones_like(correct)
    counts = ClassCounts(by_class(label, every), by_class(predicted, every), by_class(label, correct))
    return {"balanced_accuracy": metrics.balanced_accuracy, "macro_f1": metrics.macro_f1}[name](counts)


@lru_cache(maxsize=2)
def _weights(images: int) -> npt.NDArray[np.uint8]:
    """Return how often each of n images is drawn in each resample, (n, RESAMPLES); the same for the same n."""
    random = np.random.default_rng(SEED)
    weights = np.empty((images, RESAMPLES), np.uint8)
    for number in range(RESAMPLES):
        weights[:, number] = np.bincount(random.integers(0, images, images), minlength=images)
    return weights
