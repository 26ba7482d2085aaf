"""GELU and its derivative against SciPy's error function."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import erf

from pipeline.model import gelu

Z = np.linspace(-6, 6, 120_001)
CDF = 0.5 * (1 + erf(Z / np.sqrt(2)))
GELU = Z * CDF
GRAD = CDF + Z * np.exp(-Z * Z / 2) / np.sqrt(2 * np.pi)


@pytest.mark.parametrize(("exact", "largest_error"), [(True, 2e-6), (False, 1.3e-4)])
def test_gelu_is_z_times_the_normal_distribution_function(exact, largest_error):
    actual = gelu.gelu(tf.constant(Z, tf.float32), exact=exact)
    assert np.abs(actual - GELU).max() < largest_error


@pytest.mark.parametrize(("exact", "largest_error"), [(True, 2e-6), (False, 6e-4)])
def test_gelu_grad_is_the_derivative_of_gelu(exact, largest_error):
    actual = gelu.gelu_grad(tf.constant(Z, tf.float32), exact=exact)
    assert np.abs(actual - GRAD).max() < largest_error


def test_gelu_polynomials_reach_the_limits_of_the_functions():
    far = tf.constant([-1e4, 1e4])
    np.testing.assert_allclose(gelu.gelu(far, exact=False) / far, [0, 1], atol=1e-5)
    np.testing.assert_allclose(gelu.gelu_grad(far, exact=False), [0, 1], atol=1e-5)
