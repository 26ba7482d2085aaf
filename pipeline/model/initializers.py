"""Initializers of the depthwise kernels, as alternatives to Keras' default."""

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

# The variance, in squared pixels, of the Gaussian in `SpatialCovariance`, from the first block (x = 0) to the last
# (x = 1): FIRST + SLOPE x + CURVE x^2 / 2. The numbers were chosen here, not taken from the paper, so that a kernel of
# the first block is hardly more than its center, and one of the last has a standard deviation of 1.4 pixels.
FIRST, SLOPE, CURVE = 0.16, 0.32, 2.88


def build_depthwise_initializer(kind: str, *, block: int, depth: int, seed: int) -> keras.initializers.Initializer:
    """Return the initializer of the depthwise kernels of one block.

    Args:
        kind: glorot_uniform (Keras' default), fan_in_uniform (PyTorch's) or covariance.
        block: Counted from 1 to `depth`.
        seed: Seed of fan_in_uniform and covariance; glorot_uniform takes Keras' global one.
    """
    # An initializer of Keras takes its seed from the global generator when it is made. One is made for every kind, so
    # that all other layers start from the same weights whichever kind is chosen.
    glorot_uniform = keras.initializers.GlorotUniform()
    if kind == "fan_in_uniform":
        return FanInUniform(block=block, seed=seed)
    if kind == "covariance":
        return SpatialCovariance(block=block, depth=depth, seed=seed)
    return glorot_uniform


class FanInUniform(keras.initializers.Initializer):
    """Draws weights uniformly between -1/k and 1/k for kernels (k, k, filters, 1).

    This is PyTorch's default. Keras' glorot_uniform counts all channels and so starts sqrt(filters / 6) times as small.
    """

    def __init__(self, *, block: int, seed: int) -> None:
        self.block = block
        self.seed = seed

    def __call__(self, shape: tuple[int, int, int, int], dtype: str | None = None) -> Any:
        kernel_size, _, filters, _ = shape
        random = _random_generator(self.seed, self.block)
        kernels = random.uniform(-1 / kernel_size, 1 / kernel_size, (kernel_size**2, filters))
        return _to_tensor(kernels, shape, dtype)

    def get_config(self) -> dict[str, int]:
        return {"block": self.block, "seed": self.seed}


class SpatialCovariance(keras.initializers.Initializer):
    """Draws kernels (k, k, filters, 1) from a normal distribution with the covariance of `kernel_covariance`.

    The deeper the block, the wider the kernels.
    """

    def __init__(self, *, block: int, depth: int, seed: int) -> None:
        self.block = block
        self.depth = depth
        self.seed = seed

    def __call__(self, shape: tuple[int, int, int, int], dtype: str | None = None) -> Any:
        kernel_size, _, filters, _ = shape
        random = _random_generator(self.seed, self.block)
        covariance = kernel_covariance(kernel_size, variance=gaussian_variance(self.block, self.depth))
        values, vectors = np.linalg.eigh(covariance)
        standard = random.normal(size=(len(values), filters))
        return _to_tensor(vectors @ (np.sqrt(np.maximum(values, 0))[:, None] * standard), shape, dtype)

    def get_config(self) -> dict[str, int]:
        return {"block": self.block, "depth": self.depth, "seed": self.seed}


def gaussian_variance(block: int, depth: int) -> float:
    """Return the variance of the Gaussian in a block counted from 1, in squared pixels."""
    x = (block - 1) / max(depth - 1, 1)
    return FIRST + SLOPE * x + CURVE * x**2 / 2


def kernel_covariance(kernel_size: int, *, variance: float) -> npt.NDArray[np.float64]:
    """Return the covariance of all pairs of weights of a kernel, (k^2, k^2), row by row.

    In the manner of Trockman, Willmott & Kolter 2022 (arXiv 2210.03651); not yet compared with their formula or code
    line by line. Let z be a Gaussian about the center of the kernel. Weights near each other are alike (z shifted to
    each weight, around the edges), less half of what all have in common (z itself), and all this decreases with the
    distance from the center (times z). The result is the nearest matrix that is a covariance: symmetric, without
    negative eigenvalues.
    """
    center = kernel_size // 2
    gaussian = np.exp(-((np.arange(kernel_size) - center) ** 2) / (2 * variance))  # the same for rows and columns
    shifted = np.stack([np.roll(gaussian, position - center) for position in range(kernel_size)])
    z = np.kron(gaussian, gaussian)  # (k^2,)
    structure = z[:, None] * (np.kron(shifted, shifted) - z[None, :] / 2)
    values, vectors = np.linalg.eigh((structure + structure.T) / 2)
    return (vectors * np.maximum(values, 0)) @ vectors.T


def _random_generator(seed: int, block: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, block]))


def _to_tensor(kernels: npt.NDArray[np.float64], shape: tuple[int, ...], dtype: str | None) -> Any:
    return keras.ops.convert_to_tensor(kernels.reshape(shape).astype(np.float32), dtype)
