"""ConvMixer ("Patches Are All You Need?", Trockman & Kolter 2022), as in the public Keras example."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import layers

from pipeline.config.training import ModelConfig, TrainingConfig
from pipeline.model import cpu_layers
from pipeline.model.initializers import build_depthwise_initializer


def build_model(config: TrainingConfig, image_shape: Sequence[int], classes: int) -> keras.Model:
    """Return the ConvMixer to train, under Keras' global dtype policy and TensorFlow's current strategy."""
    return conv_mixer(
        image_shape,
        classes,
        filters=config.filters,
        depth=config.depth,
        kernel_size=config.kernel_size,
        patch_size=config.patch_size,
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
            batch_norm_momentum=config.batch_norm_momentum,
        )
    finally:
        keras.config.set_dtype_policy(policy)


def count_parameters(config: ModelConfig, image_shape: Sequence[int], classes: int) -> int:
    """Return the number of parameters without building the model, batch norm's moving averages included."""
    filters, channels = config.filters, image_shape[2]
    # A bias, and batch norm's scale, shift and two moving averages.
    bias_and_norm = filters + 4 * filters
    patch_embedding = config.patch_size**2 * channels * filters + bias_and_norm
    depthwise = config.kernel_size**2 * filters + bias_and_norm
    pointwise = filters**2 + bias_and_norm
    return patch_embedding + config.depth * (depthwise + pointwise) + filters * classes + classes


def conv_mixer(
    image_shape: Sequence[int],
    classes: int,
    *,
    filters: int,
    depth: int,
    kernel_size: int,
    patch_size: int,
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
        image_shape: (height, width, channels) in pixels; patch_size divides height and width.
        depthwise_init: See `build_depthwise_initializer`; `seed` is its seed.
        fast_layers: Compute with `pipeline.model.cpu_layers`; get_weights and set_weights are the same either way.
        synchronized: Batch norms use the statistics of the whole batch if several devices share it; for Keras' own
            layers only.
    """
    build = _CpuLayers(batch_norm_momentum) if fast_layers else _StockLayers(batch_norm_momentum, synchronized)
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
    probabilities = layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities")(x)
    return keras.Model(images, probabilities, name=f"conv_mixer_{filters}_{depth}")


@dataclass(frozen=True)
class _StockLayers:
    """Builds the blocks of the example's layers."""

    momentum: float
    synchronized: bool

    def patch_block(self, x: keras.KerasTensor, filters: int, patch_size: int, *, name: str) -> keras.KerasTensor:
        """Return norm(gelu(conv(x))): (b, height, width, c) -> (b, height/p, width/p, filters)."""
        return self._activate(layers.Conv2D(filters, patch_size, strides=patch_size, name=name)(x), name)

    def depthwise_block(
        self, x: keras.KerasTensor, kernel_size: int, initializer: keras.initializers.Initializer, *, name: str
    ) -> keras.KerasTensor:
        """Return norm(gelu(depthwise(x))) + x, of the shape of x."""
        depthwise = layers.DepthwiseConv2D(kernel_size, padding="same", depthwise_initializer=initializer, name=name)
        return layers.Add(name=f"{name}_residual")([self._activate(depthwise(x), name), x])

    def _activate(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        # Keras' default is the exact erf form.
        x = layers.Activation("gelu", name=f"{name}_gelu")(x)
        norm = layers.BatchNormalization(momentum=self.momentum, synchronized=self.synchronized, name=f"{name}_norm")
        return norm(x)


@dataclass(frozen=True)
class _CpuLayers:
    """Builds the same blocks of layers with fewer passes over memory."""

    momentum: float

    def patch_block(self, x: keras.KerasTensor, filters: int, patch_size: int, *, name: str) -> keras.KerasTensor:
        """Return norm(gelu(conv(x))): (b, height, width, c) -> (b, height/p, width/p, filters)."""
        patches, bias = cpu_layers.PatchConv2D(filters, patch_size, name=name)(x)
        return cpu_layers.GeluBatchNorm(momentum=self.momentum, name=f"{name}_norm")(patches, bias)

    def depthwise_block(
        self, x: keras.KerasTensor, kernel_size: int, initializer: keras.initializers.Initializer, *, name: str
    ) -> keras.KerasTensor:
        """Return norm(gelu(depthwise(x))) + x, of the shape of x."""
        depthwise = cpu_layers.DepthwiseConv2DWithSkip(kernel_size, depthwise_initializer=initializer, name=name)
        mixed, bias, skip = depthwise(x)
        return cpu_layers.GeluBatchNorm(momentum=self.momentum, name=f"{name}_norm")(mixed, bias, skip)


def is_pointwise_kernel(variable: keras.Variable) -> bool:
    """Return whether a variable of the model is the kernel (1, 1, channels, filters) of a pointwise convolution."""
    return variable.path.endswith("pointwise/kernel")


def patch_kernels(model: keras.Model) -> npt.NDArray[np.float32]:
    """Return the kernels of the patch embedding, (p, p, channels, filters), as a NumPy array."""
    return model.get_layer("patch_embedding").get_weights()[0]


def depthwise_kernels(model: keras.Model, block: int) -> npt.NDArray[np.float32]:
    """Return the depthwise kernels of a block counted from 1, (k, k, filters, 1), as a NumPy array."""
    return model.get_layer(f"block{block}_depthwise").get_weights()[0]
