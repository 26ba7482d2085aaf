"""ConvMixer ("Patches Are All You Need?", Trockman & Kolter 2022), as in the public Keras example."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
from keras import layers

from pipeline.model import cpu_layers


def conv_mixer(
    image_shape: Sequence[int],
    classes: int,
    *,
    filters: int,
    depth: int,
    kernel_size: int,
    patch_size: int,
    batch_norm_momentum: float = 0.99,
    fast_layers: bool = False,
    synchronized: bool = False,
) -> keras.Model:
    """A ConvMixer: raw pixels (b, height, width, channels), 0 to 255 -> probabilities (b, classes), float32.

    Built under Keras' global dtype policy. The defaults are the example's
    (https://keras.io/examples/vision/convmixer/), which are Keras' own; the paper's letters are h for filters, d for
    depth, k for kernel_size and p for patch_size.

    Args:
        image_shape: (height, width, channels) in pixels; patch_size divides height and width.
        fast_layers: compute with `pipeline.model.cpu_layers`; get_weights and set_weights are the same either way.
        synchronized: batch norms see the whole batch where several devices share it; Keras' own layers only.
    """
    part = _Fast(batch_norm_momentum) if fast_layers else _Stock(batch_norm_momentum, synchronized)
    images = keras.Input(tuple(image_shape), name="images")  # (b, height, width, c)
    x = layers.Rescaling(1 / 255, name="rescaling")(images)
    x = part.patches(x, filters, patch_size, name="patch_embedding")  # (b, height/p, width/p, h)
    for block in range(1, depth + 1):
        x = part.mixed(x, kernel_size, name=f"block{block}_depthwise")  # over space, a kernel a channel, plus x
        x = part.patches(x, filters, 1, name=f"block{block}_pointwise")  # over channels
    x = layers.GlobalAveragePooling2D(name="pooling")(x)  # (b, h)
    return keras.Model(images, _classify(x, classes), name=f"conv_mixer_{filters}_{depth}")


@dataclass(frozen=True)
class _Stock:
    """The example's layers."""

    momentum: float
    synchronized: bool

    def patches(self, x: keras.KerasTensor, filters: int, patch_size: int, *, name: str) -> keras.KerasTensor:
        return self._activated(layers.Conv2D(filters, patch_size, strides=patch_size, name=name)(x), name)

    def mixed(self, x: keras.KerasTensor, kernel_size: int, *, name: str) -> keras.KerasTensor:
        mixed = layers.DepthwiseConv2D(kernel_size, padding="same", name=name)(x)
        return layers.Add(name=f"{name}_residual")([self._activated(mixed, name), x])

    def _activated(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        x = layers.Activation("gelu", name=f"{name}_gelu")(x)  # Keras' default is the exact erf form
        norm = layers.BatchNormalization(momentum=self.momentum, synchronized=self.synchronized, name=f"{name}_norm")
        return norm(x)


@dataclass(frozen=True)
class _Fast:
    """The same of fewer passes over memory."""

    momentum: float

    def patches(self, x: keras.KerasTensor, filters: int, patch_size: int, *, name: str) -> keras.KerasTensor:
        return cpu_layers.GeluBatchNorm(momentum=self.momentum, name=f"{name}_norm")(
            *cpu_layers.PatchConv2D(filters, patch_size, name=name)(x)
        )

    def mixed(self, x: keras.KerasTensor, kernel_size: int, *, name: str) -> keras.KerasTensor:
        return cpu_layers.GeluBatchNorm(momentum=self.momentum, name=f"{name}_norm")(
            *cpu_layers.DepthwiseConv2DWithSkip(kernel_size, name=name)(x)
        )


def _classify(x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    # the loss needs float32: bfloat16 has three digits
    return layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities")(x)


def patch_kernels(model: keras.Model) -> keras.KerasTensor:
    """The patch embedding's kernels, (p, p, channels, filters), as a NumPy array."""
    return model.get_layer("patch_embedding").get_weights()[0]


def depthwise_kernels(model: keras.Model, block: int) -> keras.KerasTensor:
    """The depthwise kernels of a block counted from 1, (k, k, filters, 1), as a NumPy array."""
    return model.get_layer(f"block{block}_depthwise").get_weights()[0]
