"""Facts about McNemar's test."""

import pytest
from scipy.stats import binomtest

from pipeline.mcnemar import p_value


@pytest.mark.parametrize(("first", "second"), [(1, 0), (5, 0), (6, 0), (10, 3), (3, 10), (120, 80)])
def test_it_is_the_exact_binomial_test_of_a_fair_coin(first, second):
    assert p_value(first, second) == pytest.approx(binomtest(first, first + second, 0.5).pvalue)


@pytest.mark.parametrize("each", [0, 1, 50])
def test_as_many_on_each_side_tell_nothing(each):
    assert p_value(each, each) == 1
