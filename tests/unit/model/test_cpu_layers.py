"""Each fast layer against Keras' layers: outputs, gradients, moving averages."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from pipeline.model import cpu_layers

# (batch, grid height, grid width, channels, kernel size): every kernel size from 1 to 11, grids from 1 to 32
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 32, 32, 3, 2),
    (1, 5, 7, 13, 3),
    (3, 8, 8, 5, 4),
    (4, 16, 16, 16, 5),
    (1, 4, 4, 7, 6),
    (2, 9, 6, 11, 7),
    (2, 2, 2, 33, 8),
    (1, 32, 32, 2, 9),
    (2, 1, 3, 6, 10),
    (1, 16, 12, 9, 11),
    (2, 8, 8, 4, 13),
]
POLICIES = ["float32", "mixed_bfloat16"]
ROUNDING = {"float32": 2e-5, "mixed_bfloat16": 2e-2}  # of the largest value: bfloat16 keeps 8 bits, 2**-8 = 4e-3


@pytest.fixture(params=POLICIES)
def policy(request):
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


def random(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).standard_normal(shape), tf.float32)


def outputs_and_gradients(function, images, weights, *, training=None):
    """Outputs, and the gradients by images and weights of a weighted sum of them, as float32 arrays."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = tf.nest.flatten(function(images) if training is None else function(images, training))
        total = tf.add_n(
            [tf.reduce_sum(tf.cast(output, tf.float32) * random(*output.shape, seed=7)) for output in outputs]
        )
    gradients = tape.gradient(total, [images, *[weight.value for weight in weights]])
    return [np.array(tf.cast(one, tf.float32)) for one in (*outputs, *gradients)]


def assert_close(actual, expected, policy):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        scale = max(np.abs(other).max(), 1e-2)
        np.testing.assert_allclose(one / scale, other / scale, rtol=0, atol=ROUNDING[policy])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_depthwise_with_skip_equals_keras_outputs_and_gradients(size, policy):
    images = random(*size[:4])
    ours = cpu_layers.DepthwiseConv2DWithSkip(size[4], name="depthwise")
    stock = layers.DepthwiseConv2D(size[4], padding="same", dtype="float32")

    def function(images):
        mixed, bias, same = ours(images)
        return mixed + bias, same

    ours(images), stock(images)
    weights = [random(*weight.shape, seed=3) for weight in stock.weights]
    ours.set_weights(weights), stock.set_weights(weights)
    expected = outputs_and_gradients(lambda images: (stock(images), images), images, stock.weights)
    assert_close(outputs_and_gradients(function, images, ours.weights), expected, policy)


@pytest.mark.parametrize("largest_whole", [0, 13], ids=["by columns", "whole"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_kernel_gradient_is_equal_whole_and_by_columns(size, largest_whole, monkeypatch):
    *shape, kernel_size = size
    images, upstream, kernel = random(*shape), random(*shape, seed=1), random(kernel_size, kernel_size, shape[-1], 1)
    monkeypatch.setattr(cpu_layers, "LARGEST_WHOLE_KERNEL", largest_whole)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        mixed = tf.nn.depthwise_conv2d(images, kernel, [1, 1, 1, 1], "SAME")
    expected = tape.gradient(mixed, kernel, upstream)
    assert_close([cpu_layers._kernel_gradient(images, kernel_size, upstream)], [expected], "float32")


@pytest.mark.parametrize(
    "size", [(2, 8, 12, 3, 4, 10), (1, 7, 7, 5, 1, 3), (3, 6, 6, 1, 3, 7), (2, 4, 4, 4, 4, 5)], ids=str
)
def test_patch_conv_equals_a_strided_convolution(size, policy):
    *shape, patch, filters = size
    images = random(*shape)
    ours, stock = (
        cpu_layers.PatchConv2D(filters, patch, name="patches"),
        layers.Conv2D(filters, patch, patch, dtype="float32"),
    )
    ours(images), stock(images)
    stock.set_weights(weights := [random(*weight.shape, seed=3) for weight in stock.weights])
    ours.set_weights(weights)
    actual = outputs_and_gradients(lambda images: tf.add(*ours(images)), images, ours.weights)
    assert_close(actual, outputs_and_gradients(stock, images, stock.weights), policy)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 5, 7, 13), (4, 16, 16, 16), (3, 32, 32, 3)], ids=str)
def test_gelu_batch_norm_equals_keras_gelu_then_batch_norm(shape, residual, training, policy):
    ours, stock = (
        cpu_layers.GeluBatchNorm(momentum=0.7, name="norm"),
        layers.BatchNormalization(momentum=0.7, dtype="float32"),
    )
    bias = tf.Variable(random(shape[-1], seed=5))

    def function(images, training):
        x = tf.cast(images, policy.removeprefix("mixed_"))
        return ours(x, tf.cast(bias, x.dtype), x if residual else None, training=training)

    def reference(images, training):
        y = stock(keras.activations.gelu(images + bias, approximate=False), training=training)
        return y + images if residual else y

    images = random(*shape)
    function(images, False), reference(images, False)
    random_weights = [tf.abs(random(*weight.shape, seed=seed)) + 0.1 for seed, weight in enumerate(stock.weights)]
    ours.set_weights(random_weights), stock.set_weights(random_weights)
    actual = outputs_and_gradients(function, images, [*ours.trainable_weights], training=training)
    assert_close(
        actual, outputs_and_gradients(reference, images, [*stock.trainable_weights], training=training), policy
    )
    assert_close(ours.get_weights(), stock.get_weights(), policy)


def test_gelu_batch_norm_bias_gradient_equals_that_of_a_bias_before_it():
    x, bias = random(2, 4, 4, 6), tf.Variable(random(6, seed=1))
    layer = cpu_layers.GeluBatchNorm(momentum=0.9, name="norm")
    actual = []
    for function in (lambda: layer(x, bias[:], training=True), lambda: layer(x + bias, tf.zeros(6), training=True)):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(function() * random(2, 4, 4, 6, seed=2))
        actual.append(tape.gradient(total, bias))
    np.testing.assert_allclose(*actual, rtol=1e-4, atol=1e-6)


def test_gelu_batch_norm_in_float16_is_close_to_float32():
    layer, x, bias = cpu_layers.GeluBatchNorm(momentum=0.9, name="norm"), random(2, 4, 4, 6), random(6, seed=1)
    with tf.GradientTape() as tape:
        tape.watch(x)
        half = layer(tf.cast(x, tf.float16), tf.cast(bias, tf.float16), training=True)
        total = tf.reduce_sum(tf.cast(half, tf.float32) * random(2, 4, 4, 6, seed=2))
    gradient = tape.gradient(total, x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        whole = layer(x, bias, training=True)
        total = tf.reduce_sum(whole * random(2, 4, 4, 6, seed=2))
    np.testing.assert_allclose(tf.cast(half, tf.float32), whole, atol=2e-2)
    np.testing.assert_allclose(gradient, tape.gradient(total, x), atol=5e-2)


def test_fast_layers_are_traced_without_autograph(converted):
    convolution, norm = (
        cpu_layers.DepthwiseConv2DWithSkip(3, name="c"),
        cpu_layers.GeluBatchNorm(momentum=0.9, name="n"),
    )

    # Of a size that no other test traces
    @tf.function(autograph=False)
    def gradient(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            y = norm(*convolution(images), training=True)
        return tape.gradient(y, images)

    assert np.isfinite(gradient(random(3, 7, 5, 6))).all()
    assert converted == []


def test_symbolic_outputs_have_the_shapes_and_types_of_the_computed_ones(policy):
    images = random(2, 8, 6, 3)
    patches = cpu_layers.PatchConv2D(5, 2, name="patches")
    depthwise = cpu_layers.DepthwiseConv2DWithSkip(3, name="depthwise")
    norm = cpu_layers.GeluBatchNorm(momentum=0.9, name="norm")

    def blocks(x):
        y, bias = patches(x)
        mixed, other_bias, skip = depthwise(norm(y, bias))
        return y, bias, mixed, other_bias, skip, norm(mixed, other_bias, skip)

    symbolic, computed = blocks(keras.Input((8, 6, 3), batch_size=2)), blocks(images)
    assert [(one.shape, one.dtype) for one in symbolic] == [(tuple(one.shape), one.dtype.name) for one in computed]
    assert {one.dtype for one in symbolic} == {policy.removeprefix("mixed_")}
