"""Whether one classifier is better than another on the same images, by McNemar's test.

McNemar 1947, "Note on the sampling error of the difference between correlated proportions or percentages"; the exact,
binomial form: of the images that just one of the two recognizes, each is as likely to be either's if they are alike.
"""

from scipy.special import bdtr  # the binomial distribution; scipy.stats takes a second to import


def p_value(first_only: int, second_only: int) -> float:
    """Two-sided, from the counts of images that just the first, and just the second, recognizes."""
    return min(1.0, 2 * float(bdtr(min(first_only, second_only), first_only + second_only, 0.5)))
