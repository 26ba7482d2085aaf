"""How sure a difference is, against what is known of such cases."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_ind

from pipeline.evaluation.significance import Sample, Variance, difference, mcnemar_exact, pooled_variance


def runs_on(random, seeds, chances, *, shift=0.0):
    """Runs of one recipe on images of which each is recognized with a chance of its own, shifted."""
    right = random.random((seeds, len(chances))) < np.clip(chances + shift, 0, 1)
    return Sample(right.mean(axis=1), np.arange(len(chances)), right)


def images(random, number=2_000):
    return random.beta(4, 0.6, number)  # most are easy, some hardly ever recognized


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_of_equal_recipes_with_different_seeds_at_most_one_in_twenty_is_told_apart(seeds):
    random = np.random.default_rng(0)
    verdicts = []
    for _ in range(200):
        chances = images(random)
        verdicts.append(difference(runs_on(random, seeds, chances), runs_on(random, seeds, chances)).verdict)
    assert verdicts.count("within noise") >= 190


def test_a_seed_that_is_good_on_all_images_is_noise_where_seeds_repeat():
    random = np.random.default_rng(1)
    chances = images(random)

    def recipe():
        luck = random.normal(0, 0.02, 3)
        right = np.stack([runs_on(random, 1, chances, shift=shift).right[0] for shift in luck])
        return Sample(right.mean(axis=1), np.arange(len(chances)), right)

    verdicts = [difference(recipe(), recipe()).verdict for _ in range(100)]
    assert verdicts.count("within noise") >= 95


def test_five_points_on_two_thousand_images_are_found_with_one_seed_each():
    random = np.random.default_rng(2)
    chances = images(random)
    found = difference(runs_on(random, 1, chances), runs_on(random, 1, chances, shift=-0.05))
    assert found.verdict == "worse" and found.over == "test images, one seed each"
    assert 0.02 < found.low < found.mean < found.high < 0.08


def test_without_common_images_it_is_welchs_interval():
    first, second = Sample(np.array([0.9, 0.91, 0.93])), Sample(np.array([0.88, 0.9, 0.86, 0.87]))
    found = difference(first, second)
    expected = ttest_ind(first.values, second.values, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.over == "seeds"


def test_images_are_paired_only_where_they_are_the_same():
    random = np.random.default_rng(3)
    chances = images(random)
    first, second = runs_on(random, 2, chances), runs_on(random, 2, chances)
    assert difference(first, second).over == "test images and seeds"
    others = Sample(second.values, second.images[::-1], second.right)
    assert difference(first, others).over == "seeds"


def test_one_run_borrows_what_seeds_do_from_recipes_that_repeat_them():
    first, second = Sample(np.array([0.9])), Sample(np.array([0.89]))
    assert not difference(first, second).known and difference(first, second).verdict == "not known"
    repeated = [Sample(np.array([0.8, 0.82])), Sample(np.array([0.7, 0.7, 0.73])), first]
    between = pooled_variance(repeated)
    assert between == Variance(pytest.approx((0.0002 + 0.0006) / 3), 3)
    found = difference(first, second, between)
    assert found.verdict == "within noise" and found.over == "seeds of other recipes"


def test_runs_that_happen_to_agree_to_the_last_digit_are_no_proof_of_a_difference():
    assert not difference(Sample(np.array([0.9, 0.9])), Sample(np.array([0.8, 0.8]))).known


def test_two_runs_that_say_the_same_of_every_image_are_within_noise():
    right = np.array([[True, False, True]])
    same = Sample(np.array([2 / 3]), np.arange(3), right)
    found = difference(same, same)
    assert (found.low, found.high, found.verdict) == (0, 0, "within noise")


@pytest.mark.parametrize(("first", "second"), [(1, 0), (5, 0), (6, 0), (10, 3), (3, 10), (120, 80)])
def test_it_is_the_exact_binomial_test_of_a_fair_coin(first, second):
    assert mcnemar_exact(first, second) == pytest.approx(binomtest(first, first + second, 0.5).pvalue)


@pytest.mark.parametrize("each", [0, 1, 50])
def test_as_many_on_each_side_tell_nothing(each):
    assert mcnemar_exact(each, each) == 1
