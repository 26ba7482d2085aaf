"""ConvMixer ("Patches Are All You Need?", Trockman & Kolter 2022), as in the public Keras example."""

from collections.abc import Sequence

import keras
from keras import layers


def conv_mixer(
    image_shape: Sequence[int],
    classes: int,
    *,
    filters: int,
    depth: int,
    kernel_size: int,
    patch_size: int,
    batch_norm_momentum: float = 0.99,
) -> keras.Model:
    """A ConvMixer: raw pixels (b, height, width, channels), 0 to 255 -> probabilities (b, classes), float32.

    Built under Keras' global dtype policy. The one default is the example's
    (https://keras.io/examples/vision/convmixer/), which is Keras' own; the paper's letters are h for filters, d for
    depth, k for kernel_size and p for patch_size.

    Args:
        image_shape: (height, width, channels) in pixels; patch_size divides height and width.
    """
    images = keras.Input(tuple(image_shape), name="images")  # (b, height, width, c)
    x = layers.Rescaling(1 / 255, name="rescaling")(images)
    x = layers.Conv2D(filters, patch_size, strides=patch_size, name="patch_embedding")(x)  # (b, height/p, width/p, h)
    x = _activate(x, "patch_embedding", batch_norm_momentum)
    for block in range(1, depth + 1):
        name = f"block{block}_depthwise"
        mixed = layers.DepthwiseConv2D(kernel_size, padding="same", name=name)(x)  # over space, a kernel a channel
        x = layers.Add(name=f"block{block}_residual")([_activate(mixed, name, batch_norm_momentum), x])
        name = f"block{block}_pointwise"
        x = _activate(layers.Conv2D(filters, 1, name=name)(x), name, batch_norm_momentum)  # over channels
    x = layers.GlobalAveragePooling2D(name="pooling")(x)  # (b, h)
    return keras.Model(images, _classify(x, classes), name=f"conv_mixer_{filters}_{depth}")


def _activate(x: keras.KerasTensor, name: str, momentum: float) -> keras.KerasTensor:
    x = layers.Activation("gelu", name=f"{name}_gelu")(x)  # Keras' default is the exact erf form
    return layers.BatchNormalization(momentum=momentum, name=f"{name}_norm")(x)


def _classify(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    # the loss needs float32: bfloat16 has three digits
    return layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities")(x)


def patch_kernels(model: keras.Model) -> keras.KerasTensor:
    """The patch embedding's kernels, (p, p, channels, filters), as a NumPy array."""
    return model.get_layer("patch_embedding").get_weights()[0]


def depthwise_kernels(model: keras.Model, block: int) -> keras.KerasTensor:
    """The depthwise kernels of a block counted from 1, (k, k, filters, 1), as a NumPy array."""
    return model.get_layer(f"block{block}_depthwise").get_weights()[0]
