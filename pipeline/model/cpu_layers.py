"""Layers that are faster on a CPU than Keras' own: the same mathematics, variables, names and order of weights.

A convolution here leaves its bias to the normalization after it, which adds it in the same pass over memory as GELU,
batch norm and the residual. XLA compiles such chains of elementwise operations; convolutions and matrix products are
TensorFlow's. Nothing here is saved or registered: a model to keep is built of Keras' layers.

AutoGraph is off: there is no `if` on a tensor, and looking for one took 1.4 of the 5.6 s of processor time of the first
training of a process with the recipe `smoke`.
"""

import math
from collections.abc import Callable

import keras
import tensorflow as tf
from keras import layers

from pipeline.model.gelu import gelu, gelu_grad
from pipeline.runtime.cpu import has_bfloat16

STRIDES = [1, 1, 1, 1]
# Columns of a kernel whose gradient is computed at a time: oneDNN is slow at more.
KERNEL_COLUMNS = 3
# Largest kernel whose gradient is faster computed whole; measured on two cores with AVX2.
LARGEST_WHOLE_KERNEL = 5
# Horizontal strips of each image that are added up elementwise before their sum over pixels.
STRIPS, STRIPS_BFLOAT16 = 4, 8


class PatchConv2D(layers.Conv2D):
    """Convolution over patches that do not overlap: (b, h, w, c) -> (b, h/p, w/p, filters), and its bias (filters,)."""

    def __init__(self, filters: int, patch_size: int, *, name: str) -> None:
        super().__init__(filters, patch_size, strides=patch_size, name=name)

    def compute_output_spec(self, images: keras.KerasTensor) -> tuple[keras.KerasTensor, ...]:
        return super().compute_output_spec(images), keras.KerasTensor((self.filters,), self.compute_dtype)

    def call(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return self.convolution_op(images, self.kernel), self.bias[:]


class DepthwiseConv2DWithSkip(layers.DepthwiseConv2D):
    """Same-padded depthwise convolution: (b, h, w, c) -> mixed (b, h, w, c), its bias (c,), and the input again.

    The second copy of the input is for the residual. Both gradients of the input then meet here, and are added in the
    same pass.
    """

    def __init__(
        self,
        kernel_size: int,
        *,
        depthwise_initializer: keras.initializers.Initializer | str = "glorot_uniform",
        name: str,
    ) -> None:
        super().__init__(kernel_size, padding="same", depthwise_initializer=depthwise_initializer, name=name)

    def compute_output_spec(self, images: keras.KerasTensor) -> tuple[keras.KerasTensor, ...]:
        shapes = (images.shape, images.shape[-1:], images.shape)
        return tuple(keras.KerasTensor(shape, self.compute_dtype) for shape in shapes)

    def call(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        mixed, images = _depthwise_with_skip(images, tf.convert_to_tensor(self.kernel))
        return mixed, self.bias[:], images


class GeluBatchNorm(layers.BatchNormalization):
    """Batch norm of GELU: x (b, h, w, c) and the bias (c,) of its convolution -> norm(gelu(x + bias)) + residual."""

    def __init__(self, *, momentum: float, epsilon: float = 1e-3, name: str) -> None:
        # float32 as in Keras' own layer, but without a copy of inputs of another precision.
        super().__init__(momentum=momentum, epsilon=epsilon, name=name, dtype="float32", autocast=False)

    def compute_output_spec(self, x: keras.KerasTensor, *_: object, **__: object) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, x.dtype)

    def call(
        self, x: tf.Tensor, bias: tf.Tensor, residual: tf.Tensor | None = None, training: bool = False
    ) -> tf.Tensor:
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        # As in Keras' own layer, a frozen one keeps its statistics, and uses them.
        if not (training and self.trainable):
            scale = gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
            return _scale_and_shift_gelu(x, bias, scale, beta - self.moving_mean * scale, residual)
        y, mean, variance = _gelu_batch_norm(x, bias, gamma, beta, residual, epsilon=self.epsilon)
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return y


def _gelu_batch_norm(
    x: tf.Tensor, bias: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, residual: tf.Tensor | None, *, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalize gelu(x + bias) by its batch statistics, and add the residual.

    Args:
        x: (b, h, w, c), like the residual; bias, gamma and beta are (c,).

    Returns:
        The result (b, h, w, c), and the batch's mean and biased variance, (c,) each, which take no gradient.
    """

    @tf.custom_gradient
    def normalize(
        x: tf.Tensor, bias: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, *residual: tf.Tensor
    ) -> tuple[tuple, Callable]:
        mean, variance = _gelu_moments(x, bias)
        inverse_deviation = tf.math.rsqrt(variance + epsilon)
        scale = gamma * inverse_deviation

        def gradient(upstream: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
            x_gradient, gamma_gradient, beta_gradient = _gelu_batch_norm_gradient(
                x, bias, mean, inverse_deviation, gamma, upstream
            )
            bias_gradient = tf.cast(_sum_channels(x_gradient), bias.dtype)
            return (x_gradient, bias_gradient, gamma_gradient, beta_gradient, *[upstream for _ in residual])

        y = _scale_and_shift_gelu(x, bias, scale, beta - mean * scale, *residual)
        return (y, mean, variance), gradient

    residuals = [] if residual is None else [residual]
    return normalize(x, bias, gamma, beta, *residuals)


@tf.function(jit_compile=True, autograph=False)
def _gelu_moments(x: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return mean and variance (c,) of gelu(x + bias), from x (b, h, w, c) and bias (c,)."""
    exact = _use_exact_gelu(x)

    def value_and_square(rows: tf.Tensor) -> list[tf.Tensor]:
        y = gelu(rows + _to_float32(bias), exact=exact)  # (n, c)
        return [y, y * y]

    # The exact GELU, by erf, gets a pass over memory of its own anyway.
    strips = 1 if exact else _count_strips(x)
    total, squares = _sum_over_pixels(value_and_square, x, strips=strips)
    count = _values_per_channel(x)
    mean = total / count
    return mean, tf.maximum(squares / count - mean * mean, 0)


@tf.function(jit_compile=True, autograph=False)
def _scale_and_shift_gelu(
    x: tf.Tensor, bias: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor, residual: tf.Tensor | None = None
) -> tf.Tensor:
    """Return gelu(x + bias) * scale + shift + residual: x and residual are (b, h, w, c), the others (c,)."""
    y = gelu(_to_float32(x) + _to_float32(bias), exact=_use_exact_gelu(x)) * scale + shift
    if residual is not None:
        y += _to_float32(residual)
    return tf.cast(y, x.dtype)


@tf.function(jit_compile=True, autograph=False)
def _gelu_batch_norm_gradient(
    x: tf.Tensor,
    bias: tf.Tensor,
    mean: tf.Tensor,
    inverse_deviation: tf.Tensor,
    gamma: tf.Tensor,
    upstream: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the gradients by x (b, h, w, c), gamma (c,) and beta (c,).

    Ioffe & Szegedy 2015, arXiv 1502.03167, section 3, times the derivative of GELU.

    Args:
        x: (b, h, w, c), like `upstream`, the gradient by the result; all others are (c,).
    """
    exact = _use_exact_gelu(x)

    def upstream_and_product(rows: tf.Tensor, upstream_rows: tf.Tensor) -> list[tf.Tensor]:
        return [upstream_rows, upstream_rows * gelu(rows + _to_float32(bias), exact=exact)]  # (n, c) each

    beta_gradient, product = _sum_over_pixels(upstream_and_product, x, upstream, strips=_count_strips(x))
    count = _values_per_channel(x)
    gamma_gradient = (product - mean * beta_gradient) * inverse_deviation
    share = gamma_gradient * inverse_deviation / count
    z, above = _to_float32(x) + _to_float32(bias), _to_float32(upstream)
    gelu_gradient = (above - gelu(z, exact=exact) * share - (beta_gradient / count - mean * share)) * (
        gamma * inverse_deviation
    )
    return tf.cast(gelu_gradient * gelu_grad(z, exact=exact), x.dtype), gamma_gradient, beta_gradient


@tf.function(jit_compile=True, autograph=False)
def _sum_channels(x: tf.Tensor) -> tf.Tensor:
    """Return the sum over all but the channels, (b, h, w, c) -> (c,) float32."""
    [total] = _sum_over_pixels(lambda rows: [rows], x, strips=_count_strips(x))
    return total


def _sum_over_pixels(terms: Callable[..., list[tf.Tensor]], *arrays: tf.Tensor, strips: int) -> list[tf.Tensor]:
    """Return sums (c,) over all but the channels of terms of arrays (b, h, w, c).

    Each image is cut into strips, whose terms are added up elementwise first, so that less is left to sum over; and
    XLA vectorizes sums over one axis, but not over three.

    Args:
        terms: Function from rows (n, c) float32 of each array to a list of terms (n, c).
    """
    strips_of_arrays = zip(*(tf.split(array, strips, axis=1) for array in arrays), strict=True)
    terms_of_strips = [
        terms(*(_to_float32(tf.reshape(strip, [-1, strip.shape[-1]])) for strip in same_strips))
        for same_strips in strips_of_arrays
    ]
    return [tf.reduce_sum(sum(same_terms), axis=0) for same_terms in zip(*terms_of_strips, strict=True)]


def _count_strips(x: tf.Tensor) -> int:
    """Return how many strips the images x (b, h, w, c) are cut into for a sum: a divisor of their height."""
    return math.gcd(x.shape[1], STRIPS if _use_exact_gelu(x) else STRIPS_BFLOAT16)


def _use_exact_gelu(x: tf.Tensor) -> bool:
    """Return whether the type of x keeps more digits than the polynomials of `pipeline.model.gelu` have."""
    return x.dtype != tf.bfloat16


def _values_per_channel(x: tf.Tensor) -> tf.Tensor:
    """Return b h w of x (b, h, w, c), as float32."""
    return tf.cast(tf.size(x) // x.shape[-1], tf.float32)


def _to_float32(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.float32)


@tf.custom_gradient
def _depthwise_with_skip(images: tf.Tensor, kernel: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
    """Return the convolution of images (b, h, w, c) with a kernel (k, k, c, 1), and the images themselves.

    The gradient of these images is added to the convolution's.
    """

    def gradient(mixed_gradient: tf.Tensor, skip_gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images_gradient = _images_gradient(_upcast(mixed_gradient), _upcast(kernel), tf.shape(images))
        kernel_gradient = _kernel_gradient(_upcast(images), kernel.shape[0], _upcast(mixed_gradient))
        return tf.cast(images_gradient, images.dtype) + skip_gradient, tf.cast(kernel_gradient, kernel.dtype)

    mixed = tf.raw_ops.DepthwiseConv2dNative(
        input=_upcast(images), filter=_upcast(kernel), strides=STRIDES, padding="SAME"
    )
    return (tf.cast(mixed, images.dtype), tf.identity(images)), gradient


def _upcast(x: tf.Tensor) -> tf.Tensor:
    """Cast to float32 on a CPU without bfloat16 instructions: TensorFlow's kernel would round each partial sum."""
    return x if has_bfloat16() else _to_float32(x)


def _images_gradient(upstream: tf.Tensor, kernel: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Return the gradient of a depthwise convolution by its images, (b, h, w, c).

    For an odd kernel it is the convolution with the rotated kernel, which is faster; an even one is padded otherwise.
    """
    if kernel.shape[0] % 2:
        return tf.raw_ops.DepthwiseConv2dNative(
            input=upstream, filter=tf.reverse(kernel, [0, 1]), strides=STRIDES, padding="SAME"
        )
    return tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
        input_sizes=shape, filter=kernel, out_backprop=upstream, strides=STRIDES, padding="SAME"
    )


def _kernel_gradient(images: tf.Tensor, size: int, upstream: tf.Tensor) -> tf.Tensor:
    """Return the gradient of a depthwise convolution by its kernel, (k, k, c, 1), by the faster of two ways."""
    before, after = (size - 1) // 2, size // 2
    if images.dtype == tf.float32 and size <= LARGEST_WHOLE_KERNEL:
        return tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=images,
            filter_sizes=[size, size, images.shape[3], 1],
            out_backprop=upstream,
            strides=STRIDES,
            # oneDNN does not take explicit padding.
            padding="EXPLICIT",
            explicit_paddings=[0, 0, before, after, before, after, 0, 0],
        )
    padded = tf.pad(images, [[0, 0], [before, after], [before, after], [0, 0]])
    column_gradients = []
    for first in range(0, size, KERNEL_COLUMNS):
        columns = min(KERNEL_COLUMNS, size - first)
        column_gradient = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=padded[:, :, first : first + images.shape[2] + columns - 1],
            filter_sizes=[size, columns, images.shape[3], 1],
            out_backprop=upstream,
            strides=STRIDES,
            padding="VALID",
        )
        column_gradients.append(column_gradient)
    return tf.concat(column_gradients, axis=1)
