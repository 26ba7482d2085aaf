"""ConvMixer against the public Keras example."""

from hashlib import sha256
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from pipeline.config.training import TrainingConfig
from pipeline.model.conv_mixer import (
    build_model,
    build_stock_model,
    conv_mixer,
    depthwise_kernels,
    is_pointwise_kernel,
    patch_kernels,
)
from pipeline.model.initializers import build_depthwise_initializer


def keras_example(image_shape, classes, *, filters, depth, kernel_size, patch_size):
    """https://keras.io/examples/vision/convmixer/, `get_conv_mixer_256_8`, whose input was square and RGB."""

    def activation_block(x):
        x = layers.Activation("gelu")(x)
        return layers.BatchNormalization()(x)

    inputs = keras.Input(image_shape)
    x = layers.Rescaling(scale=1.0 / 255)(inputs)
    x = activation_block(layers.Conv2D(filters, kernel_size=patch_size, strides=patch_size)(x))
    for _ in range(depth):
        x0 = x
        x = layers.DepthwiseConv2D(kernel_size=kernel_size, padding="same")(x)
        x = layers.Add()([activation_block(x), x0])
        x = activation_block(layers.Conv2D(filters, kernel_size=1)(x))
    x = layers.GlobalAvgPool2D()(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x))


SIZES = [
    {"image_shape": (8, 8, 1), "classes": 3, "filters": 5, "depth": 1, "kernel_size": 3, "patch_size": 2},
    {"image_shape": (12, 8, 3), "classes": 10, "filters": 16, "depth": 3, "kernel_size": 4, "patch_size": 4},
    {"image_shape": (6, 6, 4), "classes": 2, "filters": 7, "depth": 2, "kernel_size": 1, "patch_size": 1},
]


def twins(size, *, fast_layers):
    """Ours and the example's with the same random weights, batch norm's moving averages included."""
    ours, example = conv_mixer(**size, fast_layers=fast_layers), keras_example(**size)
    random = np.random.default_rng(0)
    weights = [random.uniform(0.1, 0.9, weight.shape) for weight in example.get_weights()]
    ours.set_weights(weights)
    example.set_weights(weights)
    images = random.integers(0, 256, (4, *size["image_shape"])).astype(np.float32)
    return ours, example, images


def test_conv_mixer_256_8_has_602_890_parameters():
    model = conv_mixer((32, 32, 3), 10, filters=256, depth=8, kernel_size=5, patch_size=2)
    assert model.count_params() == 602_890
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == 594_186


@pytest.mark.parametrize("fast_layers", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_conv_mixer_weights_have_the_examples_order_and_shapes(size, fast_layers):
    ours, example = conv_mixer(**size, fast_layers=fast_layers), keras_example(**size)
    assert [weight.shape for weight in ours.get_weights()] == [weight.shape for weight in example.get_weights()]


def test_fast_layers_name_their_weights_as_the_stock_layers():
    size = SIZES[1]
    stock, fast = (conv_mixer(**size, fast_layers=fast_layers) for fast_layers in (False, True))
    assert [weight.path for weight in fast.weights] == [weight.path for weight in stock.weights]


@pytest.mark.parametrize("fast_layers", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_conv_mixer_outputs_and_gradients_equal_the_examples(size, training, fast_layers):
    ours, example, images = twins(size, fast_layers=fast_layers)
    labels = np.eye(size["classes"])[[0, 1, 0, 1]]
    results = []
    for model in (ours, example):
        with tf.GradientTape() as tape:
            probabilities = model(images, training=training)
            loss = tf.reduce_mean(keras.losses.categorical_crossentropy(labels, probabilities))
        results.append([probabilities, *tape.gradient(loss, [weight.value for weight in model.trainable_weights])])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_conv_mixer_gelu_is_the_exact_erf_form():
    x = np.linspace(-3, 3, 101, dtype=np.float32)
    layer = conv_mixer((4, 4, 1), 2, filters=4, depth=1, kernel_size=1, patch_size=1).get_layer("block1_depthwise_gelu")
    exact = x * (1 + tf.math.erf(x / np.sqrt(2)).numpy()) / 2
    np.testing.assert_allclose(layer(x), exact, atol=1e-6)
    assert np.abs(tf.nn.gelu(x, approximate=True).numpy() - exact).max() > 1e-4


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_conv_mixer_probabilities_are_float32_in_every_precision(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = conv_mixer((8, 8, 3), 5, filters=8, depth=1, kernel_size=3, patch_size=2)
    finally:
        keras.config.set_dtype_policy("float32")
    probabilities = model(np.zeros((2, 8, 8, 3)))
    assert probabilities.dtype == tf.float32
    np.testing.assert_allclose(np.sum(probabilities, axis=1), 1, rtol=1e-6)
    assert model.get_layer("block1_pointwise").compute_dtype == policy.removeprefix("mixed_")


def test_conv_mixer_rescales_raw_pixels():
    model = conv_mixer((4, 4, 1), 2, filters=4, depth=1, kernel_size=1, patch_size=1)
    np.testing.assert_allclose(model.get_layer("rescaling")(np.array([0.0, 51.0, 255.0])), [0, 0.2, 1])


def test_kernel_accessors_return_the_named_layers_kernels():
    model = conv_mixer((8, 8, 3), 5, filters=6, depth=3, kernel_size=3, patch_size=2)
    assert patch_kernels(model).shape == (2, 2, 3, 6)
    assert depthwise_kernels(model, 2).shape == (3, 3, 6, 1)
    np.testing.assert_array_equal(depthwise_kernels(model, 2), model.get_layer("block2_depthwise").get_weights()[0])


def test_conv_mixer_batch_norm_momentum_defaults_to_the_examples():
    size = {"filters": 4, "depth": 1, "kernel_size": 1, "patch_size": 1}
    assert conv_mixer((4, 4, 1), 2, **size).get_layer("patch_embedding_norm").momentum == 0.99
    given = conv_mixer((4, 4, 1), 2, **size, batch_norm_momentum=0.8)
    assert {layer.momentum for layer in given.layers if isinstance(layer, layers.BatchNormalization)} == {0.8}


SMALL = {"filters": 8, "depth": 2, "kernel_size": 3, "patch_size": 2, "seed": 5}


@pytest.mark.parametrize("fast_layers", [False, True])
@pytest.mark.parametrize("depthwise_init", ["fan_in_uniform", "covariance"])
def test_depthwise_init_sets_the_depthwise_kernels_and_no_other_weight(depthwise_init, fast_layers):
    weights = []
    for init in ("glorot_uniform", depthwise_init):
        keras.utils.set_random_seed(0)
        model = build_model(TrainingConfig(**SMALL, depthwise_init=init, fast_layers=fast_layers), (8, 8, 1), 3)
        weights.append({weight.path: weight.numpy() for weight in model.weights})
    for block in (1, 2):
        initializer = build_depthwise_initializer(depthwise_init, block=block, depth=2, seed=5)
        np.testing.assert_array_equal(depthwise_kernels(model, block), initializer((3, 3, 8, 1)))
    changed = {path for path, weight in weights[0].items() if not np.array_equal(weight, weights[1][path])}
    assert changed == {f"block{block}_depthwise/kernel" for block in (1, 2)}


def test_initial_weights_of_a_seed_are_pinned():
    keras.utils.set_random_seed(7)
    config = TrainingConfig(
        filters=8, depth=3, kernel_size=3, patch_size=2, depthwise_init="fan_in_uniform", seed=7, fast_layers=False
    )
    weights = build_model(config, (8, 8, 3), 5).get_weights()
    assert sha256(b"".join(weight.tobytes() for weight in weights)).hexdigest()[:16] == "875e8e3a11d4f7c3"


def test_stock_model_is_float32_and_holds_no_class_of_this_project():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        config = TrainingConfig(**SMALL, depthwise_init="covariance", fast_layers=True)
        stock, trained = build_stock_model(config, (8, 8, 1), 3), build_model(config, (8, 8, 1), 3)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.compute_dtype for layer in stock.layers} == {"float32"}
    # a custom class is saved with its module
    assert "pipeline." not in str(stock.get_config()) and "pipeline." in str(trained.get_config())


def test_is_pointwise_kernel_selects_the_pointwise_kernels_only():
    model = conv_mixer((8, 8, 1), 3, filters=8, depth=2, kernel_size=3, patch_size=2)
    kernels = [weight for weight in model.trainable_weights if is_pointwise_kernel(weight)]
    assert [tuple(kernel.shape) for kernel in kernels] == [(1, 1, 8, 8)] * 2


@pytest.mark.parametrize("fast_layers", [False, True])
def test_conv_mixer_layers_have_the_names_that_other_modules_look_for(fast_layers):
    model = conv_mixer((4, 4, 1), 2, filters=3, depth=1, kernel_size=1, patch_size=2, fast_layers=fast_layers)
    parts = {
        "patch_embedding": ["", "_gelu", "_norm"],
        "block1_depthwise": ["", "_gelu", "_norm", "_residual"],
        "block1_pointwise": ["", "_gelu", "_norm"],
    }
    # The fast ones compute GELU and the residual with the norm.
    kept = {"", "_norm"} if fast_layers else {"", "_gelu", "_norm", "_residual"}
    blocks = [name + suffix for name, suffixes in parts.items() for suffix in suffixes if suffix in kept]
    assert [layer.name for layer in model.layers] == ["images", "rescaling", *blocks, "pooling", "probabilities"]
    assert model.name == "conv_mixer_3_1"


@pytest.mark.parametrize(("devices", "expected"), [(1, {False}), (2, {True})])
def test_build_model_synchronizes_batch_norm_when_devices_share_a_batch(monkeypatch, devices, expected):
    strategy = SimpleNamespace(num_replicas_in_sync=devices)
    distribute = SimpleNamespace(get_strategy=lambda: strategy)
    monkeypatch.setattr("pipeline.model.conv_mixer.tf", SimpleNamespace(distribute=distribute))
    model = build_model(TrainingConfig(**SMALL, fast_layers=False), (8, 8, 1), 3)
    assert {layer.synchronized for layer in model.layers if isinstance(layer, layers.BatchNormalization)} == expected


@pytest.mark.parametrize("build", [build_model, build_stock_model])
def test_built_models_have_the_settings_of_the_config(build):
    settings = {"filters": 6, "depth": 2, "kernel_size": 5, "patch_size": 2, "activation": "relu"}
    settings |= {"batch_norm_momentum": 0.7, "batch_norm_epsilon": 1e-5, "fast_layers": False}
    model = build(TrainingConfig.build(settings), (8, 6, 3), 4)
    assert (model.input_shape, model.output_shape, model.name) == ((None, 8, 6, 3), (None, 4), "conv_mixer_6_2")
    assert model.get_layer("block2_depthwise").kernel.shape == (5, 5, 6, 1)
    assert model.get_layer("patch_embedding").kernel.shape == (2, 2, 3, 6)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert {(layer.momentum, layer.epsilon) for layer in norms} == {(0.7, 1e-5)}
    activations = [layer.activation for layer in model.layers if isinstance(layer, layers.Activation)]
    assert set(activations) == {keras.activations.relu} and len(activations) == len(norms) == 5


def test_build_model_with_fast_layers_left_at_auto_uses_stock_layers():
    model = build_model(TrainingConfig(**SMALL), (8, 8, 1), 3)
    assert "pipeline." not in str(model.get_config())


def test_conv_mixer_seeds_the_depthwise_kernels_by_the_seed_0_unless_given():
    size = {"filters": 4, "depth": 2, "kernel_size": 3, "patch_size": 1, "depthwise_init": "covariance"}
    model = conv_mixer((4, 4, 1), 2, **size)
    expected = build_depthwise_initializer("covariance", block=2, depth=2, seed=0)((3, 3, 4, 1))
    np.testing.assert_array_equal(depthwise_kernels(model, 2), expected)
