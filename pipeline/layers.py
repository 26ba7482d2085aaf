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
from tensorflow.python.util._pywrap_util_port import IsMklEnabled as uses_onednn

# uses_onednn: whether TensorFlow does in this process, which it decides by the CPU; there is no public way to ask
STRIDES = [1, 1, 1, 1]
COLUMNS = 3  # of a kernel's gradient at a time, which oneDNN is fast at
SHIFTED = range(5, 10)  # kernel sizes; a smaller one gains nothing, a larger one takes XLA long to compile


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

    def compute_output_spec(self, images: keras.KerasTensor, **_: object) -> tuple[keras.KerasTensor, ...]:
        shapes = (images.shape, images.shape[-1:], images.shape)
        return tuple(keras.KerasTensor(shape, self.compute_dtype) for shape in shapes)

    def call(self, images: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        shifted = training and self.kernel_size[0] in SHIFTED and not uses_onednn()
        mixed, images = _depthwise(images, tf.convert_to_tensor(self.kernel), shifted=shifted)
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
    z, above = _rows(x) + _float(bias), _rows(upstream)
    y = _gelu(z)
    by_beta = tf.reduce_sum(above, axis=0)
    by_gamma = (tf.reduce_sum(above * y, axis=0) - mean * by_beta) * inverse
    slope = by_gamma * inverse / _count(y)
    by_y = (above - y * slope - (by_beta / _count(y) - mean * slope)) * (gamma * inverse)
    density = tf.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    by_x = by_y * (_cdf(z) + z * density)
    return tf.cast(tf.reshape(by_x, tf.shape(x)), x.dtype), by_gamma, by_beta


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


def _depthwise(images: tf.Tensor, kernel: tf.Tensor, *, shifted: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """The convolution, and the images as they are, whose gradient is added to the convolution's."""
    size = kernel.shape[0]
    before, after = (size - 1) // 2, size // 2

    @tf.custom_gradient
    def function(images: tf.Tensor, kernel: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable]:
        def gradient(by_mixed: tf.Tensor, by_images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            by_kernel = _kernel_gradient(images, kernel, by_mixed)
            if shifted:
                return _shifted(_padded(by_mixed, after, before), kernel[::-1, ::-1], by_images), by_kernel
            through = _in_exact_sums(
                tf.raw_ops.DepthwiseConv2dNativeBackpropInput, filter=kernel, out_backprop=by_mixed,
                input_sizes=tf.shape(images), padding="SAME",
            )  # fmt: skip
            return through + by_images, by_kernel

        if shifted:
            mixed = _shifted(_padded(images, before, after), kernel)
        else:
            mixed = _in_exact_sums(tf.raw_ops.DepthwiseConv2dNative, input=images, filter=kernel, padding="SAME")
        return (mixed, tf.identity(images)), gradient

    return function(images, kernel)


@tf.function(jit_compile=True)
def _shifted(padded: tf.Tensor, kernel: tf.Tensor, addend: tf.Tensor | None = None) -> tf.Tensor:
    """The depthwise convolution as one sum over the kernel's positions, and an addend.

    It is padded outside, as XLA would test for the edge at each position.
    """
    size = kernel.shape[0]
    height, width = padded.shape[1] - size + 1, padded.shape[2] - size + 1
    weights = _float(kernel)[..., 0]  # (k, k, c)
    total = 0.0 if addend is None else _float(addend)
    for row in range(size):
        for column in range(size):
            window = padded[:, row : row + height, column : column + width]
            total += _float(window) * weights[row, column]
    return tf.cast(total, padded.dtype)


def _kernel_gradient(images: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """(k, k, c, 1); oneDNN's own is slow where the kernel is wide, so in 16 bits it is given three columns at a time.

    In float32 the padding is given in numbers, which TensorFlow leaves to a kernel of its own.
    """
    size, channels = kernel.shape[0], kernel.shape[2]
    before, after = (size - 1) // 2, size // 2
    if images.dtype != tf.float32 and uses_onednn():
        return _kernel_gradient_by_columns(_padded(images, before, after), size, upstream)
    return _in_exact_sums(
        tf.raw_ops.DepthwiseConv2dNativeBackpropFilter, input=images, out_backprop=upstream,
        filter_sizes=[size, size, channels, 1], padding="EXPLICIT",
        explicit_paddings=[0, 0, before, after, before, after, 0, 0],
    )  # fmt: skip


def _kernel_gradient_by_columns(padded: tf.Tensor, size: int, upstream: tf.Tensor) -> tf.Tensor:
    beyond = padded.shape[2] - size
    parts = []
    for first in range(0, size, COLUMNS):
        width = min(COLUMNS, size - first)
        part = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=padded[:, :, first : first + width + beyond],
            filter_sizes=[size, width, padded.shape[3], 1],
            out_backprop=upstream,
            strides=STRIDES,
            padding="VALID",
        )
        parts.append(part)
    return tf.concat(parts, axis=1)


def _in_exact_sums(operation: Callable, **arguments: tf.Tensor) -> tf.Tensor:
    """A depthwise operation; TensorFlow's own, without oneDNN, would round each partial sum to 16 bits."""
    tensors = {name: arguments[name] for name in ("input", "filter", "out_backprop") if name in arguments}
    (dtype,) = {tensor.dtype for tensor in tensors.values()}
    if not uses_onednn():
        arguments |= {name: _float(tensor) for name, tensor in tensors.items()}
    return tf.cast(operation(**arguments, strides=STRIDES), dtype)


def _padded(images: tf.Tensor, before: int, after: int) -> tf.Tensor:
    return tf.pad(images, [[0, 0], [before, after], [before, after], [0, 0]])
