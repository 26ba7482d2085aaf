"""Initial depthwise kernels: their distributions, and their width by block."""

import numpy as np
import pytest

from pipeline.model.initializers import build_depthwise_initializer, gaussian_variance, kernel_covariance


def initial_kernels(kind, *, kernel_size, filters, depth, seed):
    """The kernels of each block, (k, k, filters, 1)."""
    shape = (kernel_size, kernel_size, filters, 1)
    return [
        np.asarray(build_depthwise_initializer(kind, block=block, depth=depth, seed=seed)(shape))
        for block in range(1, depth + 1)
    ]


def flat(kernels):
    """Kernels as rows, (filters, k^2)."""
    return kernels[..., 0].reshape(-1, kernels.shape[2]).T


def spread(kernels):
    """How far from the middle a kernel's energy lies: root mean squared distance in pixels, over all channels."""
    side = kernels.shape[0]
    down, across = np.mgrid[:side, :side] - side // 2
    energy = (kernels[..., 0] ** 2).mean(axis=2)
    return np.sqrt((energy * (down**2 + across**2)).sum() / energy.sum())


@pytest.mark.parametrize(("kernel_size", "block"), [(3, 2), (4, 3), (5, 1), (5, 4), (7, 3)])
def test_covariance_kernels_have_the_closed_forms_covariance(kernel_size, block):
    kernels = initial_kernels("covariance", kernel_size=kernel_size, filters=40_000, depth=4, seed=1)[block - 1]
    expected = kernel_covariance(kernel_size, variance=gaussian_variance(block, 4))
    np.testing.assert_allclose(np.cov(flat(kernels).T), expected, atol=6 * expected.max() / np.sqrt(40_000))
    np.testing.assert_allclose(flat(kernels).mean(axis=0), 0, atol=6 * np.sqrt(expected.max() / 40_000))


@pytest.mark.parametrize("variance", [0.16, 1.0, 1.92])
@pytest.mark.parametrize("kernel_size", [3, 4, 5, 9])
def test_kernel_covariance_is_the_nearest_covariance_to_the_formula(kernel_size, variance):
    actual = kernel_covariance(kernel_size, variance=variance)
    np.testing.assert_allclose(actual, actual.T)
    assert np.linalg.eigvalsh(actual).min() > -1e-12
    middle, side = kernel_size // 2, range(kernel_size)

    def near(a, b):
        return np.exp(-(min((a - b) % kernel_size, (b - a) % kernel_size) ** 2) / (2 * variance))

    def z(i, j):
        return np.exp(-((i - middle) ** 2 + (j - middle) ** 2) / (2 * variance))

    places = [(i, j) for i in side for j in side]
    formula = np.array(
        [
            [(z(*p) + z(*q)) / 2 * near(p[0], q[0]) * near(p[1], q[1]) - z(*p) * z(*q) / 2 for q in places]
            for p in places
        ]
    )
    assert np.linalg.eigvalsh(actual - formula).min() > -1e-12  # what was negative is raised to 0, and nothing else
    assert np.linalg.norm(actual - formula) < 0.25 * np.linalg.norm(formula)


def test_covariance_kernels_widen_from_block_to_block():
    blocks = initial_kernels("covariance", kernel_size=5, filters=2000, depth=6, seed=0)
    spreads = [spread(kernels) for kernels in blocks]
    assert spreads == sorted(spreads)
    assert spreads[0] < 0.6 and spreads[-1] > 1.2


def test_covariance_kernels_correlate_neighbours_in_deep_blocks_only():
    first, *_, last = (
        np.corrcoef(flat(kernels).T)[12, 13]
        for kernels in initial_kernels("covariance", kernel_size=5, filters=2000, depth=6, seed=0)
    )
    assert abs(first) < 0.15 and last > 0.4


def test_fan_in_uniform_has_pytorchs_bound():
    kernels = initial_kernels("fan_in_uniform", kernel_size=5, filters=500, depth=2, seed=0)
    for each in kernels:
        assert 0.199 < np.abs(each).max() <= 0.2
        assert each.var() == pytest.approx(0.2**2 / 3, rel=0.05)
    assert not np.array_equal(*kernels)


@pytest.mark.parametrize("kind", ["fan_in_uniform", "covariance"])
def test_initial_kernels_depend_on_the_seed_alone(kind):
    one, again, other = (initial_kernels(kind, kernel_size=3, filters=4, depth=1, seed=seed)[0] for seed in (1, 1, 2))
    assert one.shape == (3, 3, 4, 1) and one.dtype == np.float32
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_covariance_kernels_of_one_weight_are_drawn():
    (kernels,) = initial_kernels("covariance", kernel_size=1, filters=5000, depth=1, seed=0)
    assert kernels.var() == pytest.approx(0.5, rel=0.1)


def test_gaussian_variance_grows_from_0_4_pixels_to_1_4_pixels_squared():
    assert gaussian_variance(1, 1) == gaussian_variance(1, 5) == 0.16
    assert gaussian_variance(3, 5) == pytest.approx(0.16 + 0.32 / 2 + 2.88 / 8)
    assert gaussian_variance(5, 5) == pytest.approx(1.92)


@pytest.mark.parametrize("kind", ["fan_in_uniform", "covariance"])
def test_initializer_from_its_config_draws_the_same_kernels(kind):
    initializer = build_depthwise_initializer(kind, block=2, depth=3, seed=7)
    again = type(initializer).from_config(initializer.get_config())
    np.testing.assert_array_equal(again((3, 3, 4, 1)), initializer((3, 3, 4, 1)))


@pytest.mark.parametrize("kind", ["fan_in_uniform", "covariance"])
def test_initial_kernels_have_the_type_asked_for(kind):
    kernels = build_depthwise_initializer(kind, block=1, depth=1, seed=7)((3, 3, 4, 1), dtype="float16")
    assert kernels.dtype == "float16"
