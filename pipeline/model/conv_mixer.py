"""ConvMixer ("Patches Are All You Need?", Trockman & Kolter 2022), as in the public Keras example."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import layers

from pipeline.config.training import ModelConfig, TrainingConfig
from pipeline.model import cpu_layers
from pipeline.model.initializers import build_depthwise_initializer

HEAD = "probabilities"  # the last layer


def build_model(config: TrainingConfig, image_shape: Sequence[int | None], classes: int) -> keras.Model:
    """Return the ConvMixer to train, under Keras' global dtype policy and TensorFlow's current strategy."""
    return conv_mixer(
        image_shape,
        classes,
        filters=config.filters,
        depth=config.depth,
        kernel_size=config.kernel_size,
        patch_size=config.patch_size,
        activation=config.activation,
        batch_norm_epsilon=config.batch_norm_epsilon,
        batch_norm_momentum=config.batch_norm_momentum,
        depthwise_init=config.depthwise_init,
        seed=config.seed,
        fast_layers=config.fast_layers is True,
        synchronized=tf.distribute.get_strategy().num_replicas_in_sync > 1,
    )


def build_stock_model(config: ModelConfig, image_shape: Sequence[int], classes: int) -> keras.Model:
    """Return the network as it is served: layers and initializers of Keras alone, in float32."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        return conv_mixer(
            image_shape,
            classes,
            filters=config.filters,
            depth=config.depth,
            kernel_size=config.kernel_size,
            patch_size=config.patch_size,
            activation=config.activation,
            batch_norm_epsilon=config.batch_norm_epsilon,
            batch_norm_momentum=config.batch_norm_momentum,
        )
    finally:
        keras.config.set_dtype_policy(policy)


def conv_mixer(
    image_shape: Sequence[int | None],
    classes: int,
    *,
    filters: int,
    depth: int,
    kernel_size: int,
    patch_size: int,
    activation: str = "gelu",
    batch_norm_epsilon: float = 1e-3,
    batch_norm_momentum: float = 0.99,
    depthwise_init: str = "glorot_uniform",
    seed: int = 0,
    fast_layers: bool = False,
    synchronized: bool = False,
) -> keras.Model:
    """Return a ConvMixer from raw pixels (b, height, width, channels), 0 to 255, to probabilities (b, classes) float32.

    Built under Keras' global dtype policy. The defaults are the example's
    (https://keras.io/examples/vision/convmixer/), which are Keras' own. The paper calls filters h, depth d,
    kernel_size k and patch_size p.

    Args:
        image_shape: (height, width, channels) in pixels; patch_size divides height and width. None for both builds a
            network that takes images of any size.
        activation: gelu, in its exact form, or relu.
        depthwise_init: See `build_depthwise_initializer`; `seed` is its seed.
        fast_layers: Compute with `pipeline.model.cpu_layers`; get_weights and set_weights are the same either way. They
            know no activation but gelu.
        synchronized: Batch norms use the statistics of the whole batch if several devices share it; for Keras' own
            layers only.
    """
    norm = {"momentum": batch_norm_momentum, "epsilon": batch_norm_epsilon}
    build = _CpuLayers(norm) if fast_layers else _StockLayers(norm | {"synchronized": synchronized}, activation)
    images = keras.Input(tuple(image_shape), name="images")  # (b, height, width, c)
    x = layers.Rescaling(1 / 255, name="rescaling")(images)
    x = build.patch_block(x, filters, patch_size, name="patch_embedding")  # (b, height/p, width/p, h)
    for block in range(1, depth + 1):
        # Each kernel mixes the positions of one channel; x is added as a residual.
        initializer = build_depthwise_initializer(depthwise_init, block=block, depth=depth, seed=seed)
        x = build.depthwise_block(x, kernel_size, initializer, name=f"block{block}_depthwise")
        # Kernels of one position mix the channels.
        x = build.patch_block(x, filters, 1, name=f"block{block}_pointwise")
    x = layers.GlobalAveragePooling2D(name="pooling")(x)  # (b, h)
    # float32, because bfloat16 has three digits, too few for the loss.
    probabilities = layers.Dense(classes, activation="softmax", dtype="float32", name=HEAD)(x)
    return keras.Model(images, probabilities, name=f"conv_mixer_{filters}_{depth}")


@dataclass(frozen=True)
class _StockLayers:
    """Builds the blocks of the example's layers."""

    norm: dict[str, Any]  # batch norm's arguments
    activation: str

    def patch_block(self, x: keras.KerasTensor, filters: int, patch_size: int, *, name: str) -> keras.KerasTensor:
        """Return norm(activation(conv(x))): (b, height, width, c) -> (b, height/p, width/p, filters)."""
        return self._activate(layers.Conv2D(filters, patch_size, strides=patch_size, name=name)(x), name)

    def depthwise_block(
        self, x: keras.KerasTensor, kernel_size: int, initializer: keras.initializers.Initializer, *, name: str
    ) -> keras.KerasTensor:
        """Return norm(activation(depthwise(x))) + x, of the shape of x."""
        depthwise = layers.DepthwiseConv2D(kernel_size, padding="same", depthwise_initializer=initializer, name=name)
        return layers.Add(name=f"{name}_residual")([self._activate(depthwise(x), name), x])

    def _activate(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        # Keras' gelu is the exact erf form.
        x = layers.Activation(self.activation, name=f"{name}_{self.activation}")(x)
        return layers.BatchNormalization(**self.norm, name=f"{name}_norm")(x)


@dataclass(frozen=True)
class _CpuLayers:
    """Builds the same blocks of layers with fewer passes over memory."""

    norm: dict[str, float]  # batch norm's arguments

    def patch_block(self, x: keras.KerasTensor, filters: int, patch_size: int, *, name: str) -> keras.KerasTensor:
        """Return norm(gelu(conv(x))): (b, height, width, c) -> (b, height/p, width/p, filters)."""
        patches, bias = cpu_layers.PatchConv2D(filters, patch_size, name=name)(x)
        return cpu_layers.GeluBatchNorm(**self.norm, name=f"{name}_norm")(patches, bias)

    def depthwise_block(
        self, x: keras.KerasTensor, kernel_size: int, initializer: keras.initializers.Initializer, *, name: str
    ) -> keras.KerasTensor:
        """Return norm(gelu(depthwise(x))) + x, of the shape of x."""
        depthwise = cpu_layers.DepthwiseConv2DWithSkip(kernel_size, depthwise_initializer=initializer, name=name)
        mixed, bias, skip = depthwise(x)
        return cpu_layers.GeluBatchNorm(**self.norm, name=f"{name}_norm")(mixed, bias, skip)


def position(name: str, depth: int) -> int:
    """Return where a layer is, by its name or its variable's path: 0 before all blocks, then 1 to depth, then the last.

    Args:
        name: "block3_pointwise_norm" or "block3_pointwise/kernel", for example.
        depth: Number of blocks.
    """
    if block := re.match(r"block(\d+)_", name):
        return int(block[1])
    return depth + 1 if name.startswith(HEAD) else 0


def freeze(model: keras.Model, *, depth: int, before: int) -> None:
    """Keep weights and statistics of the layers before a position as they are; compile the model after it.

    Args:
        model: A ConvMixer.
        depth: Number of its blocks.
        before: See `position`; 0 freezes none.
    """
    for layer in model.layers:
        layer.trainable = position(layer.name, depth) >= before


def is_pointwise_kernel(variable: keras.Variable) -> bool:
    """Return whether a variable of the model is the kernel (1, 1, channels, filters) of a pointwise convolution."""
    return variable.path.endswith("pointwise/kernel")


def patch_kernels(model: keras.Model) -> npt.NDArray[np.float32]:
    """Return the kernels of the patch embedding, (p, p, channels, filters), as a NumPy array."""
    return model.get_layer("patch_embedding").get_weights()[0]


def depthwise_kernels(model: keras.Model, block: int) -> npt.NDArray[np.float32]:
    """Return the depthwise kernels of a block counted from 1, (k, k, filters, 1), as a NumPy array."""
    return model.get_layer(f"block{block}_depthwise").get_weights()[0]
