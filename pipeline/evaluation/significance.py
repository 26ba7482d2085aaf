"""How much better one recipe is than another, with a 95 % interval that says over what it was taken.

The variance of a difference of two mean accuracies has up to two parts, which are added:

- over test images, where all runs of both have the same ones: the variance over images of the difference between the
  shares of runs that recognized an image, divided by the number of images (paired, as in McNemar's test);
- over seeds: s²/k for each recipe of k runs (Welch 1947); for a recipe of one run, with s² pooled over the recipes that
  have several.

Both parts hold what a seed changes in single images, so the interval is rather too wide than too narrow. Degrees of
freedom after Satterthwaite (1946). Of one run each, without a recipe that tells what seeds do, the interval speaks of
the images alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import (
    bdtr,  # the binomial distribution; scipy.stats takes a second to import
    stdtrit,  # quantiles of Student's t; scipy.stats takes a second to import
)


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Two-sided, from the counts of images that just the first, and just the second, recognizes."""
    return min(1.0, 2 * float(bdtr(min(first_only, second_only), first_only + second_only, 0.5)))


LEVEL = 0.95


@dataclass(frozen=True)
class Sample:
    """The accuracies of a recipe's runs and, where they have been kept, their outcomes on one and the same test set."""

    values: npt.NDArray[np.float64]  # (k,) fractions
    images: npt.NDArray | None = None  # (n,) which images, in their order
    right: npt.NDArray[np.bool_] | None = None  # (k, n)

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def sd(self) -> float:
        """Sample standard deviation over the runs; NaN of one run."""
        return float(self.values.std(ddof=1)) if len(self.values) > 1 else nan


class Variance(NamedTuple):
    """A variance and its degrees of freedom."""

    variance: float
    df: float


@dataclass(frozen=True)
class Difference:
    """How much more accurate the first of two recipes is, as a fraction, and between which limits."""

    mean: float
    low: float  # NaN, as `high`, where nothing tells how sure it is
    high: float
    over: str  # what the interval was taken over; empty where there is none

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return self.low == self.low

    @property
    def verdict(self) -> str:
        """worse, within noise, better or not known: what the interval says of the second recipe."""
        if not self.known:
            return "not known"
        if self.low <= 0 <= self.high:
            return "within noise"
        return "worse" if self.low > 0 else "better"


def pooled_variance(recipes: Sequence[Sample]) -> Variance | None:
    """The variance between runs of one recipe, pooled over those that have several; None where none has."""
    several = [one for one in recipes if len(one.values) > 1]
    df = sum(len(one.values) - 1 for one in several)
    if not several:
        return None
    return Variance(sum(float(one.values.var(ddof=1)) * (len(one.values) - 1) for one in several) / df, df)


def difference(first: Sample, second: Sample, between_seeds: Variance | None = None) -> Difference:
    """The first's mean accuracy less the second's.

    Args:
        between_seeds: for a recipe of one run, see `pooled`.
    """
    mean = first.mean - second.mean
    paired = _over_images(first, second)
    seeds = [spread for spread in (_over_seeds(one, between_seeds) for one in (first, second)) if spread]
    seeds = seeds if len(seeds) == 2 else []
    parts = [*([paired] if paired else []), *seeds]
    half = _half_width(parts)
    if not parts or (half == 0 and mean != 0):  # a few runs that happen to agree tell nothing
        return Difference(mean, nan, nan, "")
    borrowed = " of other recipes" if 1 in (len(first.values), len(second.values)) else ""
    over = " and ".join(["test images"] * bool(paired) + [f"seeds{borrowed}"] * bool(seeds))
    return Difference(mean, mean - half, mean + half, over if seeds else f"{over}, one seed each")


def _over_images(first: Sample, second: Sample) -> Variance | None:
    if first.images is None or second.images is None or first.right is None or second.right is None:
        return None
    if len(first.images) < 2 or not np.array_equal(first.images, second.images):
        return None
    of_each = first.right.mean(axis=0) - second.right.mean(axis=0)  # (n,)
    return Variance(float(of_each.var(ddof=1)) / len(of_each), len(of_each) - 1)


def _over_seeds(one: Sample, between_seeds: Variance | None) -> Variance | None:
    if len(one.values) > 1:
        return Variance(float(one.values.var(ddof=1)) / len(one.values), len(one.values) - 1)
    return between_seeds


def _half_width(parts: Sequence[Variance]) -> float:
    variance = sum(part.variance for part in parts)
    if variance == 0:
        return 0.0
    df = variance**2 / sum(part.variance**2 / part.df for part in parts)
    return float(stdtrit(df, (1 + LEVEL) / 2)) * sqrt(variance)
