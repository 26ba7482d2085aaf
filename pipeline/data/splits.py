"""Labels -> rows of training, validation and test, stratified by class, the same on every machine for one seed."""

from typing import NamedTuple

import numpy as np

from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import join_names


class SplitRows(NamedTuple):
    """Rows of each split, ascending; no row is in two splits."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_rows(
    labels: np.ndarray, sizes: tuple[int, int, int], classes: tuple[str, ...], validation_fraction: float, seed: int
) -> SplitRows:
    """Split all rows into training, validation and test.

    A test split that the source does not have is a fraction of its training images, a validation split the same
    fraction of the rest. Each has at least one image of each class, and leaves at least one to training.

    Args:
        labels: (n,), of the source's training images first, then validation, then test.
        sizes: Numbers of these in the source; 0 for a split that it does not have.
        classes: Names by label.

    Raises:
        UsageError: A class has too few images.
    """
    train, validation, test = np.split(np.arange(len(labels)), np.cumsum(sizes)[:2])
    _, validation_size, test_size = sizes
    missing_splits = [validation_size, test_size].count(0)
    _check_class_sizes(labels[train], classes, minimum=1 + missing_splits)
    by_class = _shuffle_by_class(train, labels, len(classes), seed)
    if test_size == 0:
        test, by_class = _hold_out(by_class, validation_fraction, leave=missing_splits)
    if validation_size == 0:
        validation, by_class = _hold_out(by_class, validation_fraction, leave=1)
    return SplitRows(np.sort(np.concatenate(by_class)), validation, test)


def fold_rows(
    rows: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], folds: int, seed: int
) -> list[np.ndarray]:
    """Deal rows to folds, each class by itself, so that the folds differ by at most one image in size and in any class.

    Args:
        rows: (m,) those to deal.
        labels: (n,), of all rows.
        classes: Names by label.
        folds: Their number.

    Returns:
        The rows of each fold, ascending, the largest folds first.

    Raises:
        UsageError: A class has fewer images than there are folds.
    """
    counts = np.bincount(labels[rows], minlength=len(classes))
    small = [f"{name} has {count}" for name, count in zip(classes, counts, strict=True) if count < folds]
    if small:
        raise UsageError(
            f"folds must be at most the training and validation images of each class, for each fold to get one: "
            f"got folds={folds}, and {join_names(small)}; add images or leave the class out"
        )
    # one after another, so that the next class goes on with the fold that comes next
    dealt = np.concatenate(_shuffle_by_class(rows, labels, len(classes), seed))
    return [np.sort(dealt[fold::folds]) for fold in range(folds)]


def subsample(
    rows: np.ndarray, count: int, labels: np.ndarray, classes: int, seed: int, *, least: int = 1
) -> np.ndarray:
    """Return `count` rows, or all if there are fewer: each class in proportion, with at least `least` rows or all."""
    by_class = _shuffle_by_class(rows, labels, classes, seed)
    sizes = np.array([len(own) for own in by_class])
    shares = largest_remainder(count, sizes, np.minimum(sizes, least), sizes)
    return np.sort(np.concatenate([own[:share] for own, share in zip(by_class, shares, strict=True)]))


def largest_remainder(total: int, sizes: np.ndarray, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Return integer shares (k,) in proportion to `sizes` that add up to `total`, as far as the bounds allow.

    Largest remainder method: the integer part of each quota, then one more for the largest remainders.

    Args:
        least: Lower bounds (k,).
        most: Upper bounds (k,).
    """
    quotas = total * sizes / sizes.sum()
    shares: np.ndarray = np.clip(quotas.astype(np.int64), least, most)
    while shares.sum() < min(total, most.sum()):
        shares[np.argmax(np.where(shares < most, quotas - shares, -np.inf))] += 1
    while shares.sum() > max(total, least.sum()):
        shares[np.argmin(np.where(shares > least, quotas - shares, np.inf))] -= 1
    return shares


def _hold_out(by_class: list[np.ndarray], fraction: float, *, leave: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return a stratified fraction of all rows, ascending, and the rest by class, at least `leave` rows each."""
    sizes = np.array([len(own) for own in by_class])
    shares = largest_remainder(round(fraction * sizes.sum()), sizes, np.ones_like(sizes), sizes - leave)
    taken = [own[:share] for own, share in zip(by_class, shares, strict=True)]
    return np.sort(np.concatenate(taken)), [own[share:] for own, share in zip(by_class, shares, strict=True)]


def _shuffle_by_class(rows: np.ndarray, labels: np.ndarray, classes: int, seed: int) -> list[np.ndarray]:
    """Return the rows of each class in random order.

    The order comes from the raw output of PCG64, which NumPy promises to keep; `Generator.permutation` may change.
    """
    keys = np.random.PCG64(seed).random_raw(len(labels))
    own_rows = (rows[labels[rows] == label] for label in range(classes))
    return [own[np.argsort(keys[own], kind="stable")] for own in own_rows]


def _check_class_sizes(labels: np.ndarray, classes: tuple[str, ...], *, minimum: int) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    small = [f"{name} has {count}" for name, count in zip(classes, counts, strict=True) if count < minimum]
    if small:
        raise UsageError(
            f"every class needs {minimum} training images or more, for each split to get one: {join_names(small)}; "
            "add images or leave the class out"
        )
