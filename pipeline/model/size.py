"""The size of a ConvMixer, without Keras, which takes seconds to import."""

from collections.abc import Sequence

from pipeline.config.training import ModelConfig


def count_parameters(config: ModelConfig, image_shape: Sequence[int], classes: int) -> int:
    """Return the number of parameters without building the model, batch norm's moving averages included."""
    filters, channels = config.filters, image_shape[2]
    # A bias, and batch norm's scale, shift and two moving averages.
    bias_and_norm = filters + 4 * filters
    patch_embedding = config.patch_size**2 * channels * filters + bias_and_norm
    depthwise = config.kernel_size**2 * filters + bias_and_norm
    pointwise = filters**2 + bias_and_norm
    return patch_embedding + config.depth * (depthwise + pointwise) + filters * classes + classes
