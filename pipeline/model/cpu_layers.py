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

from pipeline.model.gelu import gelu, gelu_grad
from pipeline.runtime.cpu import has_bfloat16

STRIDES = [1, 1, 1, 1]
COLUMNS = 3  # of a kernel whose gradient is taken at a time
LARGEST_WHOLE = 5  # side of a kernel whose gradient is faster in one; measured on two cores with AVX2
FOLD, FOLD_BFLOAT16 = 4, 8  # parts of each image that are added up before they are summed over


class PatchConv2D(layers.Conv2D):
    """A convolution by patches: (b, height, width, c) -> (b, height/p, width/p, filters), and its bias."""

    def __init__(self, filters: int, patch_size: int, *, name: str) -> None:
        super().__init__(filters, patch_size, strides=patch_size, name=name)

    def compute_output_spec(self, images: keras.KerasTensor) -> tuple[keras.KerasTensor, ...]:
        return super().compute_output_spec(images), keras.KerasTensor((self.filters,), self.compute_dtype)

    def call(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return self.convolution_op(images, self.kernel), self.bias[:]


class DepthwiseConv2DWithSkip(layers.DepthwiseConv2D):
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


class GeluBatchNorm(layers.BatchNormalization):
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
    exact = _is_exact(x)

    def moments(x: tf.Tensor) -> list[tf.Tensor]:
        y = gelu(x + _float(bias), exact=exact)
        return [y, y * y]

    total, squares = _sums(moments, x, parts=1 if exact else _parts(x))  # erf gets a pass over memory of its own anyway
    mean = total / _count(x)
    return mean, tf.maximum(squares / _count(x) - mean * mean, 0)


@tf.function(jit_compile=True)
def _scaled(
    x: tf.Tensor, bias: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor, residual: tf.Tensor | None = None
) -> tf.Tensor:
    y = gelu(_float(x) + _float(bias), exact=_is_exact(x)) * scale + shift
    return tf.cast(y if residual is None else y + _float(residual), x.dtype)


@tf.function(jit_compile=True)
def _normalized_gradient(
    x: tf.Tensor, bias: tf.Tensor, mean: tf.Tensor, inverse: tf.Tensor, gamma: tf.Tensor, upstream: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """By x, gamma and beta (Ioffe & Szegedy 2015, arXiv 1502.03167, section 3, and the derivative of GELU)."""
    exact = _is_exact(x)

    def products(x: tf.Tensor, above: tf.Tensor) -> list[tf.Tensor]:
        return [above, above * gelu(x + _float(bias), exact=exact)]

    by_beta, product = _sums(products, x, upstream, parts=_parts(x))
    by_gamma = (product - mean * by_beta) * inverse
    share = by_gamma * inverse / _count(x)
    z, above = _float(x) + _float(bias), _float(upstream)
    by_y = (above - gelu(z, exact=exact) * share - (by_beta / _count(x) - mean * share)) * (gamma * inverse)
    return tf.cast(by_y * gelu_grad(z, exact=exact), x.dtype), by_gamma, by_beta


@tf.function(jit_compile=True)
def _channel_sums(x: tf.Tensor) -> tf.Tensor:
    [total] = _sums(lambda x: [x], x, parts=_parts(x))
    return total


def _sums(terms: Callable[..., list[tf.Tensor]], *arrays: tf.Tensor, parts: int) -> list[tf.Tensor]:
    """Sums (c,) of terms over all but the channels of arrays (b, h, w, c), which `terms` gets as rows (n, c), float32.

    The terms of each part of the images are added up on the way, so that what is left to sum over is small; and XLA
    vectorizes sums over one axis, which over three it does not.
    """
    split = zip(*(tf.split(array, parts, axis=1) for array in arrays), strict=True)
    of_parts = [terms(*(_float(tf.reshape(part, [-1, part.shape[-1]])) for part in some)) for some in split]
    return [tf.reduce_sum(sum(some), axis=0) for some in zip(*of_parts, strict=True)]


def _parts(x: tf.Tensor) -> int:
    return math.gcd(x.shape[1], FOLD if _is_exact(x) else FOLD_BFLOAT16)


def _is_exact(x: tf.Tensor) -> bool:
    """Whether what is computed of x keeps more digits than the polynomials of `pipeline.model.gelu` have."""
    return x.dtype != tf.bfloat16


def _count(x: tf.Tensor) -> tf.Tensor:
    """Of the values of a channel in (b, h, w, c)."""
    return tf.cast(tf.size(x) // x.shape[-1], tf.float32)


def _float(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.float32)


@tf.custom_gradient
def _depthwise(images: tf.Tensor, kernel: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
    """The convolution, and the images as they are, whose gradient is added to the convolution's."""

    def gradient(by_mixed: tf.Tensor, by_images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        through = _images_gradient(_upcast(by_mixed), _upcast(kernel), tf.shape(images))
        by_kernel = _kernel_gradient(_upcast(images), kernel.shape[0], _upcast(by_mixed))
        return tf.cast(through, images.dtype) + by_images, tf.cast(by_kernel, kernel.dtype)

    mixed = tf.raw_ops.DepthwiseConv2dNative(
        input=_upcast(images), filter=_upcast(kernel), strides=STRIDES, padding="SAME"
    )
    return (tf.cast(mixed, images.dtype), tf.identity(images)), gradient


def _upcast(x: tf.Tensor) -> tf.Tensor:
    """In float32 where there are no 16-bit instructions: TensorFlow's own kernel would round each partial sum."""
    return x if has_bfloat16() else _float(x)


def _images_gradient(upstream: tf.Tensor, kernel: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """(b, h, w, c), as the convolution with the turned kernel, which is faster, where that has the same padding."""
    if kernel.shape[0] % 2:
        return tf.raw_ops.DepthwiseConv2dNative(
            input=upstream, filter=tf.reverse(kernel, [0, 1]), strides=STRIDES, padding="SAME"
        )
    return tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
        input_sizes=shape, filter=kernel, out_backprop=upstream, strides=STRIDES, padding="SAME"
    )


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
