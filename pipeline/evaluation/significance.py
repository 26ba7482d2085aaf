"""The significance of a difference between two configurations: its 95 % interval, and McNemar's test of accuracies.

The variance of a difference of two mean accuracies has up to two parts, which are added:

- Over test images, if all runs of both configurations have the same ones: the variance, over the images, of the
  difference between the shares of runs that classified an image correctly, divided by the number of images (paired, as
  in McNemar's test).
- Over seeds: s²/k for a configuration of k runs (Welch 1947). For a configuration of one run, s² is pooled over the
  configurations that have several.

Both parts contain what a seed changes in single images, so the interval is too wide rather than too narrow. Degrees of
freedom after Satterthwaite (1946). If both configurations have one run and no other one tells what seeds change, the
interval covers the images alone.

Of other metrics than accuracy the first part is the variance of the paired bootstrap; where there is no second part,
the interval is that of its percentiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# The binomial distribution and the quantiles of Student's t; scipy.stats, which has them too, takes a second to import.
from scipy.special import bdtr, stdtrit

from pipeline.evaluation.bootstrap import percentile_interval

LEVEL = 0.95


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Return the two-sided p-value of McNemar's test for two classifiers of the same images.

    The exact, binomial form: if the classifiers are equally good, an image that just one of them classifies correctly
    is as likely to be one's as the other's (McNemar 1947, "Note on the sampling error of the difference between
    correlated proportions or percentages").

    Args:
        first_only: Number of images that only the first classifies correctly.
        second_only: Number of images that only the second classifies correctly.
    """
    return min(1.0, 2 * float(bdtr(min(first_only, second_only), first_only + second_only, 0.5)))


def wilson_interval(shares: npt.NDArray, numbers: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray]:
    """Return the ends of the 95 % intervals of shares of so many images (Wilson 1927)."""
    z2 = 1.96**2
    middle = (shares + z2 / (2 * numbers)) / (1 + z2 / numbers)
    half = np.sqrt(z2 * (shares * (1 - shares) / numbers + z2 / (4 * numbers**2))) / (1 + z2 / numbers)
    return middle - half, middle + half


@dataclass(frozen=True)
class Sample:
    """A metric of a configuration's runs and, if known, their outcomes on one test set that all of them share."""

    values: npt.NDArray[np.float64]  # (k,)
    images: npt.NDArray | None = None  # (n,) which images, in their order
    correct: npt.NDArray[np.bool_] | None = None  # (k, n); of accuracies
    resampled: npt.NDArray[np.float64] | None = None  # (k, resamples) of the images; of other metrics, see `bootstrap`

    @property
    def mean(self) -> float:
        """Return the mean over the runs."""
        return float(self.values.mean())

    @property
    def sd(self) -> float:
        """Return the sample standard deviation over the runs; NaN for one run."""
        return float(self.values.std(ddof=1)) if len(self.values) > 1 else nan


class Variance(NamedTuple):
    """A variance and its degrees of freedom."""

    variance: float
    df: float


@dataclass(frozen=True)
class Difference:
    """The metric of the first of two configurations minus that of the second, and the limits of its interval."""

    mean: float
    low: float  # NaN, as is `high`, if there is no interval
    high: float
    over: str  # what the interval was taken over; empty if there is none
    sign: int = 1  # -1 if a lower metric is better

    @property
    def known(self) -> bool:
        """Return whether there is an interval."""
        return not isnan(self.low)

    @property
    def verdict(self) -> str:
        """Return what the interval says about the second: worse, within noise, better or not known."""
        if not self.known:
            return "not known"
        if self.low <= 0 <= self.high:
            return "within noise"
        return "worse" if self.sign * self.low > 0 else "better"


def pooled_variance(samples: Sequence[Sample]) -> Variance | None:
    """Return the variance over seeds, pooled over the samples of several runs; None if there is no such sample."""
    repeated = [sample for sample in samples if len(sample.values) > 1]
    if not repeated:
        return None
    df = sum(len(sample.values) - 1 for sample in repeated)
    return Variance(sum(float(sample.values.var(ddof=1)) * (len(sample.values) - 1) for sample in repeated) / df, df)


def difference(first: Sample, second: Sample, between_seeds: Variance | None = None, *, sign: int = 1) -> Difference:
    """Return the first's mean minus the second's, with its interval.

    Args:
        first: A configuration.
        second: The one that is compared with it.
        between_seeds: Variance over seeds for a sample of one run, see `pooled_variance`.
        sign: -1 if a lower metric is better.
    """
    mean = first.mean - second.mean
    resampled = _resampled_difference(first, second)
    paired = _over_images(first, second, resampled)
    seeds = [variance for sample in (first, second) if (variance := _over_seeds(sample, between_seeds))]
    if len(seeds) < 2:
        seeds = []
    parts = [paired, *seeds] if paired else seeds
    half_width = _half_width(parts)
    low, high = mean - half_width, mean + half_width
    if resampled is not None and not seeds:
        low, high = percentile_interval(resampled)
    # A few runs that happen to agree exactly do not show that the variance is zero.
    if not parts or (low == high and mean != 0):
        return Difference(mean, nan, nan, "", sign)
    borrowed = 1 in (len(first.values), len(second.values))
    return Difference(mean, low, high, _taken_over(paired, seeds, borrowed=borrowed), sign)


def _resampled_difference(first: Sample, second: Sample) -> npt.NDArray[np.float64] | None:
    """Return the mean difference on each resample of the images, (resamples,); None unless both have the same ones."""
    if first.images is None or second.images is None or not np.array_equal(first.images, second.images):
        return None
    if first.resampled is None or second.resampled is None:
        return None
    return first.resampled.mean(axis=0) - second.resampled.mean(axis=0)


def _over_images(first: Sample, second: Sample, resampled: npt.NDArray[np.float64] | None) -> Variance | None:
    """Return the variance of the mean difference over images; None unless both samples have the same ones."""
    if first.images is None or second.images is None or not np.array_equal(first.images, second.images):
        return None
    if resampled is not None:
        return Variance(float(resampled.var(ddof=1)), max(1, len(first.images) - 1))
    if first.correct is None or second.correct is None or len(first.images) < 2:
        return None
    by_image = first.correct.mean(axis=0) - second.correct.mean(axis=0)  # (n,)
    return Variance(float(by_image.var(ddof=1)) / len(by_image), len(by_image) - 1)


def _over_seeds(sample: Sample, between_seeds: Variance | None) -> Variance | None:
    """Return the variance of a mean over seeds; `between_seeds` for one run."""
    if len(sample.values) > 1:
        return Variance(float(sample.values.var(ddof=1)) / len(sample.values), len(sample.values) - 1)
    return between_seeds


def _half_width(parts: Sequence[Variance]) -> float:
    """Return half the width of the interval for the sum of some variances."""
    variance = sum(part.variance for part in parts)
    if variance == 0:
        return 0.0
    df = variance**2 / sum(part.variance**2 / part.df for part in parts)
    return float(stdtrit(df, (1 + LEVEL) / 2)) * sqrt(variance)


def _taken_over(paired: Variance | None, seeds: Sequence[Variance], *, borrowed: bool) -> str:
    """Return in words what an interval was taken over."""
    if not seeds:
        return "test images, one seed each"
    over_seeds = "seeds of other configurations" if borrowed else "seeds"
    return f"test images and {over_seeds}" if paired else over_seeds
