"""Intervals and p-values of differences, against known cases and scipy."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_ind

from pipeline.evaluation.significance import (
    Sample,
    Variance,
    difference,
    mcnemar_exact,
    pooled_variance,
    wilson_interval,
)


def draw_sample(random, seeds, probabilities, *, shift=0.0):
    """Runs of one configuration; each image is classified correctly with its own probability, shifted."""
    correct = random.random((seeds, len(probabilities))) < np.clip(probabilities + shift, 0, 1)
    return Sample(correct.mean(axis=1), np.arange(len(probabilities)), correct)


def draw_probabilities(random, images=2_000):
    return random.beta(4, 0.6, images)  # most images are easy, some are hardly ever classified correctly


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_difference_of_equal_configurations_is_noise_in_19_of_20_cases(seeds):
    random = np.random.default_rng(0)
    verdicts = []
    for _ in range(200):
        probabilities = draw_probabilities(random)
        samples = [draw_sample(random, seeds, probabilities) for _ in range(2)]
        verdicts.append(difference(*samples).verdict)
    assert verdicts.count("within noise") >= 190


def test_difference_counts_the_effect_of_a_seed_on_all_images_as_noise():
    random = np.random.default_rng(1)
    probabilities = draw_probabilities(random)

    def draw():
        effects = random.normal(0, 0.02, 3)
        correct = np.stack([draw_sample(random, 1, probabilities, shift=effect).correct[0] for effect in effects])
        return Sample(correct.mean(axis=1), np.arange(len(probabilities)), correct)

    verdicts = [difference(draw(), draw()).verdict for _ in range(100)]
    assert verdicts.count("within noise") >= 95


def test_difference_of_five_points_on_2000_images_is_found_with_one_seed_each():
    random = np.random.default_rng(2)
    probabilities = draw_probabilities(random)
    result = difference(draw_sample(random, 1, probabilities), draw_sample(random, 1, probabilities, shift=-0.05))
    assert result.verdict == "worse" and result.over == "test images, one seed each"
    assert 0.02 < result.low < result.mean < result.high < 0.08


def test_difference_without_common_images_has_welchs_interval():
    first, second = Sample(np.array([0.9, 0.91, 0.93])), Sample(np.array([0.88, 0.9, 0.86, 0.87]))
    result = difference(first, second)
    expected = ttest_ind(first.values, second.values, equal_var=False).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
    assert result.over == "seeds"


def test_difference_pairs_images_only_if_they_are_the_same():
    random = np.random.default_rng(3)
    probabilities = draw_probabilities(random)
    first, second = draw_sample(random, 2, probabilities), draw_sample(random, 2, probabilities)
    assert difference(first, second).over == "test images and seeds"
    other_images = Sample(second.values, second.images[::-1], second.correct)
    assert difference(first, other_images).over == "seeds"


def test_difference_of_single_runs_borrows_the_variance_of_repeated_ones():
    first, second = Sample(np.array([0.9])), Sample(np.array([0.89]))
    assert not difference(first, second).known and difference(first, second).verdict == "not known"
    samples = [Sample(np.array([0.8, 0.82])), Sample(np.array([0.7, 0.7, 0.73])), first]
    between_seeds = pooled_variance(samples)
    assert between_seeds == Variance(pytest.approx((0.0002 + 0.0006) / 3), 3)
    result = difference(first, second, between_seeds)
    assert result.verdict == "within noise" and result.over == "seeds of other configurations"


def test_difference_of_runs_that_agree_exactly_is_not_known():
    assert not difference(Sample(np.array([0.9, 0.9])), Sample(np.array([0.8, 0.8]))).known


def test_difference_of_equal_predictions_is_within_noise():
    sample = Sample(np.array([2 / 3]), np.arange(3), np.array([[True, False, True]]))
    result = difference(sample, sample)
    assert (result.low, result.high, result.verdict) == (0, 0, "within noise")


@pytest.mark.parametrize(("first", "second"), [(1, 0), (5, 0), (6, 0), (10, 3), (3, 10), (120, 80)])
def test_mcnemar_exact_is_the_binomial_test_of_a_fair_coin(first, second):
    assert mcnemar_exact(first, second) == pytest.approx(binomtest(first, first + second, 0.5).pvalue)


@pytest.mark.parametrize("each", [0, 1, 50])
def test_mcnemar_exact_of_equal_counts_is_1(each):
    assert mcnemar_exact(each, each) == 1


def test_wilson_interval_is_that_of_the_literature():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20
    low, high = wilson_interval(np.array([81 / 263, 0.0]), np.array([263, 20]))
    np.testing.assert_allclose(low, [0.2553, 0.0], atol=1e-4)
    np.testing.assert_allclose(high, [0.3662, 0.1611], atol=1e-4)
