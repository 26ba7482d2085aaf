"""Labels -> rows of training, validation and test: stratified by class, the same for a seed on every machine."""

from typing import NamedTuple

import numpy as np

from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import join_names


class SplitRows(NamedTuple):
    """Rows of each split, ascending; no row is in two."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_rows(
    labels: np.ndarray, sizes: tuple[int, int, int], classes: tuple[str, ...], validation_fraction: float, seed: int
) -> SplitRows:
    """Split rows of which the first `sizes` are given as training, validation and test.

    A test part that is not given (size 0) is a fraction of training, a validation part the same fraction of the rest.
    Both have at least one image of each class, and leave training at least one.
    """
    given_train, given_validation, given_test = np.split(np.arange(len(labels)), np.cumsum(sizes)[:2])
    missing = (not sizes[1]) + (not sizes[2])
    _refuse_small_classes(labels[given_train], classes, needed=1 + missing)
    by_class = _shuffled(given_train, labels, len(classes), seed)
    test, by_class = (given_test, by_class) if sizes[2] else _held_out(by_class, validation_fraction, missing)
    validation, by_class = (given_validation, by_class) if sizes[1] else _held_out(by_class, validation_fraction, 1)
    return SplitRows(np.sort(np.concatenate(by_class)), validation, test)


def subsample(rows: np.ndarray, count: int, labels: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """`count` of the rows, each class in its proportion and with one row at least; all rows if there are no more."""
    by_class = _shuffled(rows, labels, classes, seed)
    sizes = np.array([len(own) for own in by_class])
    shares = largest_remainder(count, sizes, np.minimum(sizes, 1), sizes)
    return np.sort(np.concatenate([own[:share] for own, share in zip(by_class, shares, strict=True)]))


def largest_remainder(total: int, sizes: np.ndarray, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Shares (k,) in proportion to `sizes` and within their bounds, adding up to `total` as far as these allow.

    By largest remainder: the whole part of each quota, then one more for those that lack most.
    """
    quotas = total * sizes / sizes.sum()
    shares: np.ndarray = np.clip(quotas.astype(np.int64), least, most)
    while shares.sum() < min(total, most.sum()):
        shares[np.argmax(np.where(shares < most, quotas - shares, -np.inf))] += 1
    while shares.sum() > max(total, least.sum()):
        shares[np.argmin(np.where(shares > least, quotas - shares, np.inf))] -= 1
    return shares


def _held_out(by_class: list[np.ndarray], fraction: float, leave: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rows taken from those of each class, ascending, and what is left of each: `leave` rows at least."""
    sizes = np.array([len(own) for own in by_class])
    shares = largest_remainder(round(fraction * sizes.sum()), sizes, np.ones_like(sizes), sizes - leave)
    taken = [own[:share] for own, share in zip(by_class, shares, strict=True)]
    return np.sort(np.concatenate(taken)), [own[share:] for own, share in zip(by_class, shares, strict=True)]


def _shuffled(rows: np.ndarray, labels: np.ndarray, classes: int, seed: int) -> list[np.ndarray]:
    """Rows of each class, in random order.

    By the raw output of PCG64, which NumPy promises to keep; what `Generator.permutation` makes of it may change.
    """
    keys = np.random.PCG64(seed).random_raw(len(labels))
    own_rows = (rows[labels[rows] == label] for label in range(classes))
    return [own[np.argsort(keys[own], kind="stable")] for own in own_rows]


def _refuse_small_classes(labels: np.ndarray, classes: tuple[str, ...], needed: int) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    small = [f"{name} has {count}" for name, count in zip(classes, counts, strict=True) if count < needed]
    if small:
        raise UsageError(
            f"every class needs {needed} training images or more, for each split to get one: {join_names(small)}; "
            "add images or leave the class out"
        )
