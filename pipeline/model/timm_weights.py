"""Weights of timm's ConvMixer (`timm.models.convmixer`), in which the authors' ImageNet models are published.

A file of safetensors holds arrays and no code, unlike PyTorch's own files, which are pickles and are not read.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.model.conv_mixer import HEAD

Arrays = Mapping[str, npt.NDArray]

EPSILON: Final = 1e-5  # PyTorch's default of batch norm
# timm standardizes the pixels of all its ConvMixers so, as shares of 255 (`IMAGENET_DEFAULT_MEAN` and `_STD`)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# filters, depth, kernel and patch size of the one published network with ReLU, `convmixer_768_32`; a file does not tell
RELU: Final = (768, 32, 7, 7)


def architecture(arrays: Arrays) -> dict[str, object]:
    """Return the settings of the network that the arrays belong to.

    Raises:
        ValueError: They are not those of a ConvMixer under timm's names; the message says what is missing.
    """
    for name, axes in (("stem.0.weight", 4), ("blocks.0.0.fn.0.weight", 4), ("head.weight", 2)):
        if name not in arrays or arrays[name].ndim != axes:
            raise ValueError(f"{name} is missing")
    filters, _, patch_size, _ = arrays["stem.0.weight"].shape
    depth = len({name.split(".")[1] for name in arrays if name.startswith("blocks.")})
    kernel_size = arrays["blocks.0.0.fn.0.weight"].shape[-1]
    return {
        "filters": filters,
        "depth": depth,
        "kernel_size": kernel_size,
        "patch_size": patch_size,
        "activation": "relu" if (filters, depth, kernel_size, patch_size) == RELU else "gelu",
        "batch_norm_epsilon": EPSILON,
    }


def keras_layers(arrays: Arrays) -> dict[str, list[npt.NDArray[np.float32]]]:
    """Return the arrays as the weights of this program's layers, by the layer's name and in Keras' order.

    What timm subtracts from the pixels, and divides them by, is part of the patch embedding here, which takes pixels as
    shares of 255. It has no padding, so this is exact.

    Raises:
        ValueError: An array is missing.
    """
    depth = int(str(architecture(arrays)["depth"]))
    try:
        layers = _convolution_and_norm(arrays, "patch_embedding", "stem.0", "stem.2")
        for block in range(depth):
            timm, name = f"blocks.{block}", f"block{block + 1}"
            layers |= _convolution_and_norm(arrays, f"{name}_depthwise", f"{timm}.0.fn.0", f"{timm}.0.fn.2")
            # (filters, 1, k, k) -> (k, k, filters, 1)
            layers[f"{name}_depthwise"][0] = layers[f"{name}_depthwise"][0].swapaxes(2, 3)
            layers |= _convolution_and_norm(arrays, f"{name}_pointwise", f"{timm}.1", f"{timm}.3")
        layers[HEAD] = [arrays["head.weight"].T.astype(np.float32), arrays["head.bias"].astype(np.float32)]
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from None
    layers["patch_embedding"] = _fold_standardization(*layers["patch_embedding"])
    return layers


def _convolution_and_norm(
    arrays: Arrays, name: str, convolution: str, norm: str
) -> dict[str, list[npt.NDArray[np.float32]]]:
    """Return a convolution and the batch norm after it; its kernels (out, in, k, k) become (k, k, in, out)."""
    kernels, bias = (arrays[f"{convolution}.{part}"].astype(np.float32) for part in ("weight", "bias"))
    statistics = [
        arrays[f"{norm}.{part}"].astype(np.float32) for part in ("weight", "bias", "running_mean", "running_var")
    ]
    return {name: [kernels.transpose(2, 3, 1, 0), bias], f"{name}_norm": statistics}


def _fold_standardization(
    kernels: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]
) -> list[npt.NDArray[np.float32]]:
    """Return the kernels and biases that take x where these take (x - MEAN) / DEVIATION.

    Raises:
        ValueError: The images have not three channels.
    """
    if kernels.shape[2] != len(MEAN):
        raise ValueError(f"stem.0.weight must be for images of 3 channels, and is for {kernels.shape[2]}")
    scaled = kernels.astype(np.float64) / np.array(DEVIATION)[:, None]
    shift = np.einsum("yxio,i->o", scaled, np.array(MEAN))
    return [scaled.astype(np.float32), (bias - shift).astype(np.float32)]
