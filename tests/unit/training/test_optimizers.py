"""Optimizers: steps of Muon and AdamW on a small ConvMixer with artificial gradients."""

from typing import get_args

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.optimizers.base_optimizer import BaseOptimizer

from pipeline.config.training import OptimizationConfig
from pipeline.model.conv_mixer import conv_mixer
from pipeline.training.optimizers import OPTIMIZERS, ShortTraceMixin, build_optimizer
from pipeline.training.schedules import LearningRateSchedule

RATE, FILTERS = 0.01, 24


def initial_weights(*, biases=0.0, depth=2):
    """Return the trainable weights of a small network by path, the same each time.

    Args:
        biases: what is added to those that begin at 0.
        depth: of the network.
    """
    keras.utils.set_random_seed(0)
    model = conv_mixer((8, 8, 1), 3, filters=FILTERS, depth=depth, kernel_size=3, patch_size=2)
    for weight in model.trainable_weights:
        if weight.path.endswith(("bias", "beta")):
            weight.assign(weight + biases)
    return {weight.path: weight for weight in model.trainable_weights}


def first_step(kind, *, weight_decay=0.0, gradient=1.0, epsilon=1e-7, clip_norm=None, biases=0.0, share_of=None):
    """Return what one step adds to each weight."""
    variables = initial_weights(biases=biases)
    before = {path: np.array(weight) for path, weight in variables.items()}
    random = np.random.default_rng(0)
    gradients = [gradient * random.standard_normal(weight.shape).astype(np.float32) for weight in variables.values()]
    config = OptimizationConfig.build(
        {"optimizer": kind, "weight_decay": weight_decay, "adam_epsilon": epsilon, "clip_norm": clip_norm}
    )
    schedule = LearningRateSchedule("constant", peak=RATE, steps=1, warmup_fraction=0)
    optimizer = build_optimizer(config, schedule, share_of=share_of)
    optimizer.apply(gradients, list(variables.values()))
    return {path: np.array(weight) - before[path] for path, weight in variables.items()}


def test_muon_steps_are_equally_long_in_all_directions_of_pointwise_kernels():
    for gradient in (1.0, 1e-3):
        for block in (1, 2):
            step = first_step("muon", gradient=gradient)[f"block{block}_pointwise/kernel"][0, 0]
            lengths = np.linalg.svd(step, compute_uv=False) / (RATE * 0.2 * np.sqrt(FILTERS))
            assert lengths.min() > 0.5 and lengths.max() < 1.3, "five Newton-Schulz steps leave them nearly one"


def test_muon_with_less_momentum_is_nearer_to_the_last_gradient():
    random = np.random.default_rng(0)
    shapes = [weight.shape for weight in initial_weights(depth=1).values()]
    earlier, last = ([random.standard_normal(shape).astype(np.float32) for shape in shapes] for _ in range(2))

    def last_step(momentum, *steps):
        variables = initial_weights(depth=1)
        config = OptimizationConfig.build({"optimizer": "muon", "muon_momentum": momentum, "weight_decay": 0})
        optimizer = build_optimizer(config, LearningRateSchedule("constant", peak=RATE, steps=1, warmup_fraction=0))
        for gradients in steps:
            before = np.array(variables["block1_pointwise/kernel"])
            optimizer.apply(gradients, list(variables.values()))
        return np.array(variables["block1_pointwise/kernel"]) - before

    alone = last_step(0, last)
    distances = [np.linalg.norm(last_step(momentum, earlier, last) - alone) for momentum in (0, 0.5, 0.95)]
    assert distances[0] < 1e-6 < distances[1] < distances[2]


def test_adamw_steps_differ_in_length_between_directions():
    step = first_step("adamw")["block1_pointwise/kernel"][0, 0]
    lengths = np.linalg.svd(step, compute_uv=False)
    assert lengths.max() > 10 * lengths.min()


def test_muon_leaves_all_other_weights_to_adamw():
    muon, adamw = first_step("muon", weight_decay=0.1), first_step("adamw", weight_decay=0.1)
    different = {path for path in muon if not np.allclose(muon[path], adamw[path], rtol=1e-4, atol=1e-7)}
    assert different == {"block1_pointwise/kernel", "block2_pointwise/kernel"}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_weight_decay_applies_to_kernels_only(kind):
    # A bias of 0 would not show that it decays.
    before = {path: np.array(weight) for path, weight in initial_weights(biases=0.5).items()}
    plain, decayed = (first_step(kind, weight_decay=decay, biases=0.5) for decay in (0.0, 0.5))
    for path, weight in before.items():
        share = 0.5 * RATE if path.endswith("kernel") else 0.0
        np.testing.assert_allclose(decayed[path] - plain[path], -share * weight, rtol=1e-2, atol=1e-6)


def test_clip_norm_scales_down_all_gradients_together():
    step = first_step("adamw", epsilon=1.0, clip_norm=1e-3)  # with that epsilon a first step is so much of its gradient
    length = np.sqrt(sum((part**2).sum() for part in step.values()))
    assert length == pytest.approx(RATE * np.sqrt(1 - 0.999) * 1e-3, rel=1e-2)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_accumulated_gradients_make_one_update_by_their_mean(kind):
    def train(accumulation, gradients):
        variables = initial_weights()
        config = OptimizationConfig.build({"optimizer": kind, "weight_decay": 0.1, "clip_norm": 0.5})
        schedule = LearningRateSchedule("constant", peak=RATE, steps=1, warmup_fraction=0)
        optimizer = build_optimizer(config, schedule, gradient_accumulation=accumulation)
        weights = []
        for gradient in gradients:
            optimizer.apply(
                [np.full(each.shape, gradient, np.float32) for each in variables.values()], list(variables.values())
            )
            weights.append([np.array(each) for each in variables.values()])
        return weights

    one, two = train(1, [2.0, -1.0])
    first, second, third, fourth = train(2, [1.0, 3.0, 0.0, -2.0])
    before = [np.array(each) for each in initial_weights().values()]
    for expected, got in ((before, first), (one, second), (one, third), (two, fourth)):
        for weight, same in zip(expected, got, strict=True):
            np.testing.assert_allclose(weight, same, rtol=1e-6, atol=1e-7)


def test_registry_has_a_builder_for_each_optimizer_of_the_config():
    assert set(OPTIMIZERS) == set(get_args(OptimizationConfig.model_fields["optimizer"].annotation))


@pytest.mark.parametrize("kind", get_args(OptimizationConfig.model_fields["optimizer"].annotation))
def test_share_of_the_learning_rate_scales_step_and_decay_of_its_variables(kind):
    def share_of(path):
        return 0.25 if path.startswith("block1") else 1.0

    whole = first_step(kind, weight_decay=0.1)
    shared = first_step(kind, weight_decay=0.1, share_of=share_of)
    for path, step in whole.items():
        np.testing.assert_allclose(shared[path], share_of(path) * step, rtol=1e-2, atol=1e-7, err_msg=path)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_steps_are_those_of_keras_with_fewer_operations(kind, monkeypatch):
    short, short_count = trained(kind)
    monkeypatch.setattr(ShortTraceMixin, "_apply_adam", lambda *arguments: False)
    monkeypatch.setattr(ShortTraceMixin, "_backend_apply_gradients", BaseOptimizer._backend_apply_gradients)
    keras_own, keras_count = trained(kind)
    for path, weight in short.items():
        np.testing.assert_array_equal(weight, keras_own[path])
    assert short_count < 0.85 * keras_count


def trained(kind):
    """Return the weights after five steps of a schedule, and the number of operations of a step."""
    variables = initial_weights(depth=1)
    random = np.random.default_rng(0)
    schedule = LearningRateSchedule("one_cycle", peak=RATE, steps=5, warmup_fraction=0.4)
    config = OptimizationConfig.build({"optimizer": kind, "weight_decay": 0.1, "clip_norm": 1.0})
    optimizer = build_optimizer(config, schedule)
    optimizer.build(list(variables.values()))

    @tf.function(autograph=False)
    def step(gradients):
        optimizer.apply(gradients, list(variables.values()))

    for _ in range(5):
        gradients = [tf.constant(random.standard_normal(weight.shape), tf.float32) for weight in variables.values()]
        step(gradients)
    operations = step.get_concrete_function(gradients).graph.get_operations()
    return {path: np.array(weight) for path, weight in variables.items()}, len(operations)
