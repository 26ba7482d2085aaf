"""Stratified splits."""

import numpy as np
import pytest

from pipeline.data.splits import largest_remainder, split_rows, subsample


@pytest.mark.parametrize(
    ("total", "sizes", "shares"),
    [
        (10, [50, 30, 20], [5, 3, 2]),
        (10, [45, 35, 20], [5, 3, 2]),  # 4.5, 3.5, 2: of equal remainders the first
        (3, [1000, 1, 1], [1, 1, 1]),  # each at least one
        (5, [1000, 1, 1], [3, 1, 1]),
        (2000, [3, 4], [3, 4]),  # all there are
    ],
)
def test_largest_remainder_adds_up_within_the_bounds(total, sizes, shares):
    sizes = np.array(sizes)
    assert largest_remainder(total, sizes, np.ones_like(sizes), sizes).tolist() == shares


def test_split_rows_holds_the_fraction_over_all_classes_together():
    labels = np.repeat(np.arange(100), 14)  # a tenth of 14 is 1.4: rounding class by class would hold out 100, not 140
    rows = split_rows(labels, (1400, 0, 0), tuple(map(str, range(100))), 0.1, seed=3)
    assert (len(rows.test), len(rows.validation), len(rows.train)) == (140, 126, 1134)


def test_subsample_of_fewer_rows_is_a_subset_of_that_of_more():
    labels = np.arange(300) % 3
    few, more = (subsample(np.arange(300), count, labels, 3, seed=5) for count in (30, 90))
    assert set(few) < set(more)


def test_split_rows_draws_from_each_class_at_random():
    labels = np.repeat([0, 1], 50)  # files of one class lie together
    train = split_rows(labels, (100, 0, 0), ("a", "b"), 0.2, seed=0).train
    assert (np.diff(train) > 1).any() and np.bincount(labels[train]).tolist() == [32, 32]
