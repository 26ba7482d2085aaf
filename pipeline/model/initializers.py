"""Initial depthwise kernels, drawn as a function of the seed; an alternative to the layer's own."""

import numpy as np
import numpy.typing as npt

Kernels = npt.NDArray[np.float32]  # (k, k, filters, 1), a kernel a channel

# The width of a kernel's Gaussian, a variance in squared pixels, from the first block (x = 0) to the last (x = 1):
# first + slope x + curve x^2 / 2. The numbers were chosen here, not taken from the paper, so that a kernel of the first
# block is hardly more than its middle, and one of the last has a standard deviation of 1.4 pixels.
FIRST, SLOPE, CURVE = 0.16, 0.32, 2.88


def initial_kernels(kind: str, *, kernel_size: int, filters: int, depth: int, seed: int) -> list[Kernels]:
    """The depthwise kernels of each block.

    - fan_in_uniform: uniform between -1/k and 1/k, PyTorch's default, where Keras' glorot_uniform counts all channels
      and so starts sqrt(filters / 6) times as small.
    - covariance: normal with the covariance of `covariance`, the wider the deeper the block.
    """
    found = []
    for block in range(1, depth + 1):
        random = np.random.Generator(np.random.PCG64([seed, block]))
        if kind == "fan_in_uniform":
            kernels = random.uniform(-1 / kernel_size, 1 / kernel_size, (kernel_size**2, filters))
        else:
            values, vectors = np.linalg.eigh(covariance(kernel_size, variance=width(block, depth)))
            kernels = vectors @ (np.sqrt(np.maximum(values, 0))[:, None] * random.normal(size=(len(values), filters)))
        found.append(kernels.reshape(kernel_size, kernel_size, filters, 1).astype(np.float32))
    return found


def width(block: int, depth: int) -> float:
    """The variance of the Gaussian in a block counted from 1, in squared pixels."""
    x = (block - 1) / max(depth - 1, 1)
    return FIRST + SLOPE * x + CURVE * x**2 / 2


def covariance(kernel_size: int, *, variance: float) -> npt.NDArray[np.float64]:
    """Covariance of all pairs of a kernel's weights, (k^2, k^2), row by row.

    In the manner of Trockman, Willmott & Kolter 2022 (arXiv 2210.03651); not yet compared with their formula or code
    line by line. With z a Gaussian about the kernel's middle:
    weights near each other are alike (z moved to each weight, around the edges), less half of what all have in common
    (z itself); and all this the less, the farther from the middle (times z). The nearest matrix that is a covariance is
    taken: symmetric, without negative eigenvalues.
    """
    middle = kernel_size // 2
    gaussian = np.exp(-((np.arange(kernel_size) - middle) ** 2) / (2 * variance))  # down as across
    moved = np.stack([np.roll(gaussian, place - middle) for place in range(kernel_size)])
    z = np.kron(gaussian, gaussian)  # (k^2,)
    structure = z[:, None] * (np.kron(moved, moved) - z[None, :] / 2)
    values, vectors = np.linalg.eigh((structure + structure.T) / 2)
    return (vectors * np.maximum(values, 0)) @ vectors.T
