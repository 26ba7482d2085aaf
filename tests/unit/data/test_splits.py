"""Stratified splits."""

import numpy as np
import pytest

from pipeline.data.splits import fold_rows, largest_remainder, split_rows, subsample
from pipeline.runtime.errors import UsageError


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


@pytest.mark.parametrize(
    ("sizes", "minimum"), [((12, 0, 0), 3), ((12, 0, 4), 2), ((12, 4, 0), 2), ((12, 4, 4), 1)], ids=str
)
def test_split_rows_needs_an_image_of_each_class_for_training_and_each_missing_split(sizes, minimum):
    labels = np.arange(sum(sizes)) % 2
    few = np.where(np.arange(len(labels)) < minimum, 1, 0)  # in the training images
    few[sizes[0] :] = labels[sizes[0] :]
    rows = split_rows(few, sizes, ("a", "b"), 0.9, seed=0)
    assert np.bincount(few[rows.train]).min() >= 1 and min(map(len, rows)) >= 2
    assert sorted(np.concatenate(rows)) == list(range(len(labels)))
    few[0] = 0
    with pytest.raises(UsageError) as error:
        split_rows(few, sizes, ("a", "b"), 0.9, seed=0)
    assert str(error.value) == (
        f"every class needs {minimum} training images or more, for each split to get one: b has {minimum - 1}; "
        "add images or leave the class out"
    )


def test_split_rows_keeps_the_splits_of_the_source():
    labels = np.arange(30) % 3
    rows = split_rows(labels, (15, 6, 9), ("a", "b", "c"), 0.5, seed=0)
    assert [part.tolist() for part in rows] == [list(range(15)), list(range(15, 21)), list(range(21, 30))]


def test_split_rows_holds_out_the_validation_fraction_of_what_the_test_images_leave():
    labels = np.repeat([0, 1], 50)
    rows = split_rows(labels, (100, 0, 0), ("a", "b"), 0.2, seed=0)
    assert [np.bincount(labels[part]).tolist() for part in rows] == [[32, 32], [8, 8], [10, 10]]
    for part in rows:
        assert (np.diff(part) > 0).all()
    again = split_rows(labels, (100, 0, 0), ("a", "b"), 0.2, seed=0)
    assert all(np.array_equal(*pair) for pair in zip(rows, again, strict=True))
    of_another_seed = split_rows(labels, (100, 0, 0), ("a", "b"), 0.2, seed=1)
    assert rows.test.tolist() != of_another_seed.test.tolist()


def test_subsample_is_in_proportion_with_a_row_of_each_class():
    labels = np.repeat([0, 1, 2], [80, 19, 1])
    rows = subsample(np.arange(100), 10, labels, 3, seed=0)
    assert np.bincount(labels[rows]).tolist() == [8, 1, 1] and (np.diff(rows) > 0).all()
    assert (np.diff(rows[:8]) > 1).any(), "they are drawn at random"
    assert subsample(np.arange(5), 10, labels, 1, seed=0).tolist() == [0, 1, 2, 3, 4]
    # A class may be missing among the rows.
    assert (
        subsample(np.arange(10), 4, labels, 3, seed=0).tolist()
        == subsample(np.arange(10), 4, labels, 1, seed=0).tolist()
    )


def test_subsample_takes_as_many_rows_of_a_small_class_as_told_or_all_that_it_has():
    labels = np.repeat([0, 1, 2], [80, 18, 2])
    rows = subsample(np.arange(100), 20, labels, 3, seed=0, least=5)
    assert np.bincount(labels[rows]).tolist() == [13, 5, 2]


def test_fold_rows_deals_each_row_once_and_each_class_evenly():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [17, 9, 4]))
    rows = np.flatnonzero(np.arange(30) != 5)
    folds = fold_rows(rows, labels, ("a", "b", "c"), 4, seed=3)
    assert sorted(np.concatenate(folds)) == rows.tolist()
    assert [len(fold) for fold in folds] == [8, 7, 7, 7]
    counts = np.array([np.bincount(labels[fold], minlength=3) for fold in folds])
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert all((np.diff(fold) > 0).all() for fold in folds)


def test_fold_rows_depends_on_the_seed_alone():
    labels = np.arange(40) % 2
    first, again, other = (
        [fold.tolist() for fold in fold_rows(np.arange(40), labels, ("a", "b"), 5, seed=seed)] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_fold_rows_of_a_class_with_fewer_images_than_folds_raises_with_its_name():
    labels = np.repeat([0, 1, 2], [9, 4, 3])
    with pytest.raises(UsageError) as error:
        fold_rows(np.arange(16), labels, ("a", "b", "c"), 5, seed=0)
    assert str(error.value) == (
        "folds must be at most the training and validation images of each class, for each fold to get one: "
        "got folds=5, and b has 4, c has 3; add images or leave the class out"
    )
