"""The few layers that are faster on a CPU than Keras' own: the same mathematics, variables, names and weight order.

A convolution here leaves its bias to the normalization after it, which adds it in the same pass over memory as GELU,
batch norm and the residual. What XLA compiles are such chains of elementwise operations; convolutions and matrix
products are TensorFlow's. Nothing here is saved or registered: a model to keep is built of Keras' layers.
"""

import math
from collections.abc import Callable

import keras
import tensorflow as tf
from keras import layers

from pipeline.machine.processor import has_bfloat16

STRIDES = [1, 1, 1, 1]
COLUMNS = 3  # of a kernel whose gradient is taken at a time
LARGEST_WHOLE = 5  # side of a kernel whose gradient is faster in one; measured on two cores with AVX2
FOLD = 4  # parts of each image that are added up before they are summed over


class Conv2D(layers.Conv2D):
    """A convolution by patches: (b, height, width, c) -> (b, height/p, width/p, filters), and its bias."""

    def __init__(self, filters: int, patch_size: int, *, name: str) -> None:
        super().__init__(filters, patch_size, strides=patch_size, name=name)

    def compute_output_spec(self, images: keras.KerasTensor) -> tuple[keras.KerasTensor, ...]:
        return super().compute_output_spec(images), keras.KerasTensor((self.filters,), self.compute_dtype)

    def call(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return self.convolution_op(images, self.kernel), self.bias[:]


class Depthwise(layers.DepthwiseConv2D):
    """A same-padded depthwise convolution: images (b, h, w, c) -> mixed (b, h, w, c), its bias, and the images again.

    The images are for the residual: their two gradients then come together here, and are added on the way.
    """

    def __init__(self, kernel_size: int, *, name: str) -> None:
        super().__init__(kernel_size, padding="same", name=name)

    def compute_output_spec(self, images: keras.KerasTensor) -> tuple[keras.KerasTensor, ...]:
        shapes = (images.shape, images.shape[-1:], images.shape)
        return tuple(keras.KerasTensor(shape, self.compute_dtype) for shape in shapes)

    def call(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        mixed, images = _depthwise(images, tf.convert_to_tensor(self.kernel))
        return mixed, self.bias[:], images


class GeluNorm(layers.BatchNormalization):
    """Batch norm of GELU: x (b, h, w, c) and the bias (c,) of what made it -> norm(gelu(x + bias)), plus a residual."""

    def __init__(self, *, momentum: float, name: str) -> None:
        # float32 as in Keras' own, but without copying what comes in another precision
        super().__init__(momentum=momentum, name=name, dtype="float32", autocast=False)

    def compute_output_spec(self, x: keras.KerasTensor, *_: object, **__: object) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, x.dtype)

    def call(
        self, x: tf.Tensor, bias: tf.Tensor, residual: tf.Tensor | None = None, training: bool = False
    ) -> tf.Tensor:
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if not training:
            scale = gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
            return _scaled(x, bias, scale, beta - self.moving_mean * scale, residual)
        y, mean, variance = _normalized(x, bias, gamma, beta, residual, epsilon=self.epsilon)
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return y


def _normalized(
    x: tf.Tensor, bias: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, residual: tf.Tensor | None, *, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalized over all but the channels, the batch's mean and (biased) variance, which take no gradient."""

    @tf.custom_gradient
    def function(
        x: tf.Tensor, bias: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, *residual: tf.Tensor
    ) -> tuple[tuple, Callable]:
        mean, variance = _moments(x, bias)
        inverse = tf.math.rsqrt(variance + epsilon)
        scale = gamma * inverse

        def gradient(upstream: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
            by_x, by_gamma, by_beta = _normalized_gradient(x, bias, mean, inverse, gamma, upstream)
            return (by_x, tf.cast(_channel_sums(by_x), bias.dtype), by_gamma, by_beta, *[upstream for _ in residual])

        return (_scaled(x, bias, scale, beta - mean * scale, *residual), mean, variance), gradient

    return function(x, bias, gamma, beta, *([] if residual is None else [residual]))


@tf.function(jit_compile=True)
def _moments(x: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance (c,) of gelu(x + bias)."""
    y = _gelu(_rows(x) + _float(bias))
    count = _count(y)
    mean = tf.reduce_sum(y, axis=0) / count
    return mean, tf.maximum(tf.reduce_sum(y * y, axis=0) / count - mean * mean, 0)


@tf.function(jit_compile=True)
def _scaled(
    x: tf.Tensor, bias: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor, residual: tf.Tensor | None = None
) -> tf.Tensor:
    y = _gelu(_float(x) + _float(bias)) * scale + shift
    return tf.cast(y if residual is None else y + _float(residual), x.dtype)


@tf.function(jit_compile=True)
def _normalized_gradient(
    x: tf.Tensor, bias: tf.Tensor, mean: tf.Tensor, inverse: tf.Tensor, gamma: tf.Tensor, upstream: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """By x, gamma and beta (Ioffe & Szegedy 2015, arXiv 1502.03167, section 3, and the derivative of GELU)."""
    z, above = _float(x) + _float(bias), _float(upstream)
    above_sum = product_sum = 0.0  # (b, h / parts, w, c): sums over parts need no pass over memory of their own
    parts = math.gcd(x.shape[1], FOLD)
    for part, above_part in zip(tf.split(z, parts, axis=1), tf.split(above, parts, axis=1), strict=True):
        above_sum += above_part
        product_sum += above_part * _gelu(part)
    by_beta = tf.reduce_sum(_rows(above_sum), axis=0)
    by_gamma = (tf.reduce_sum(_rows(product_sum), axis=0) - mean * by_beta) * inverse
    count = _count(_rows(x))
    slope = by_gamma * inverse / count
    by_y = (above - _gelu(z) * slope - (by_beta / count - mean * slope)) * (gamma * inverse)
    density = tf.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return tf.cast(by_y * (_cdf(z) + z * density), x.dtype), by_gamma, by_beta


@tf.function(jit_compile=True)
def _channel_sums(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(_rows(x), axis=0)


def _rows(x: tf.Tensor) -> tf.Tensor:
    """(b, h, w, c) -> (bhw, c) float32: XLA vectorizes sums over one axis, over three it does not."""
    return _float(tf.reshape(x, [-1, x.shape[-1]]))


def _count(rows: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.shape(rows)[0], tf.float32)


def _float(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.float32)


def _cdf(x: tf.Tensor) -> tf.Tensor:
    return 0.5 * (1 + tf.math.erf(x * math.sqrt(0.5)))


def _gelu(x: tf.Tensor) -> tf.Tensor:
    """The exact form (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""
    return x * _cdf(x)


@tf.custom_gradient
def _depthwise(images: tf.Tensor, kernel: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
    """The convolution, and the images as they are, whose gradient is added to the convolution's."""

    def gradient(by_mixed: tf.Tensor, by_images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        through = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
            input_sizes=tf.shape(images),
            filter=_exact(kernel),
            out_backprop=_exact(by_mixed),
            strides=STRIDES,
            padding="SAME",
        )
        by_kernel = _kernel_gradient(_exact(images), kernel.shape[0], _exact(by_mixed))
        return tf.cast(through, images.dtype) + by_images, tf.cast(by_kernel, kernel.dtype)

    mixed = tf.raw_ops.DepthwiseConv2dNative(
        input=_exact(images), filter=_exact(kernel), strides=STRIDES, padding="SAME"
    )
    return (tf.cast(mixed, images.dtype), tf.identity(images)), gradient


def _exact(x: tf.Tensor) -> tf.Tensor:
    """In float32 where there are no 16-bit instructions: TensorFlow's own kernel would round each partial sum."""
    return x if has_bfloat16() else _float(x)


def _kernel_gradient(images: tf.Tensor, size: int, upstream: tf.Tensor) -> tf.Tensor:
    """(k, k, c, 1), by whichever of two ways is faster: oneDNN is slow at more columns than three."""
    before, after = (size - 1) // 2, size // 2
    if images.dtype == tf.float32 and size <= LARGEST_WHOLE:
        return tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=images,
            filter_sizes=[size, size, images.shape[3], 1],
            out_backprop=upstream,
            strides=STRIDES,
            padding="EXPLICIT",  # which oneDNN does not take
            explicit_paddings=[0, 0, before, after, before, after, 0, 0],
        )
    padded = tf.pad(images, [[0, 0], [before, after], [before, after], [0, 0]])
    parts = []
    for first in range(0, size, COLUMNS):
        columns = min(COLUMNS, size - first)
        part = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=padded[:, :, first : first + images.shape[2] + columns - 1],
            filter_sizes=[size, columns, images.shape[3], 1],
            out_backprop=upstream,
            strides=STRIDES,
            padding="VALID",
        )
        parts.append(part)
    return tf.concat(parts, axis=1)
