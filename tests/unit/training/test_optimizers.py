"""Muon's steps beside AdamW's, on a small ConvMixer with made gradients."""

from typing import get_args

import keras
import numpy as np
import pytest

from pipeline.config.training import OptimizationConfig
from pipeline.model.conv_mixer import conv_mixer
from pipeline.training.optimizers import OPTIMIZERS, build_optimizer
from pipeline.training.schedules import LearningRateSchedule

RATE, FILTERS = 0.01, 24


def weights():
    """The trainable weights of a small network, the same each time, by path."""
    keras.utils.set_random_seed(0)
    model = conv_mixer((8, 8, 1), 3, filters=FILTERS, depth=2, kernel_size=3, patch_size=2)
    return {weight.path: weight for weight in model.trainable_weights}


def steps(kind, *, weight_decay=0.0, gradient=1.0, epsilon=1e-7, clip_norm=None):
    """What one step adds to each weight."""
    variables = weights()
    before = {path: np.array(weight) for path, weight in variables.items()}
    random = np.random.default_rng(0)
    gradients = [gradient * random.standard_normal(weight.shape).astype(np.float32) for weight in variables.values()]
    config = OptimizationConfig.build(
        {"optimizer": kind, "weight_decay": weight_decay, "adam_epsilon": epsilon, "clip_norm": clip_norm}
    )
    made = build_optimizer(config, LearningRateSchedule("constant", peak=RATE, steps=1, warmup_fraction=0))
    made.apply(gradients, list(variables.values()))
    return {path: np.array(weight) - before[path] for path, weight in variables.items()}


def test_muon_steps_as_far_in_all_directions_of_the_pointwise_kernels_whatever_the_gradient():
    for gradient in (1.0, 1e-3):
        for block in (1, 2):
            step = steps("muon", gradient=gradient)[f"block{block}_pointwise/kernel"][0, 0]
            lengths = np.linalg.svd(step, compute_uv=False) / (RATE * 0.2 * np.sqrt(FILTERS))
            assert lengths.min() > 0.5 and lengths.max() < 1.3, "five Newton-Schulz steps leave them nearly one"


def test_adamw_does_not():
    step = steps("adamw")["block1_pointwise/kernel"][0, 0]
    lengths = np.linalg.svd(step, compute_uv=False)
    assert lengths.max() > 10 * lengths.min()


def test_all_other_weights_take_adamws_steps():
    muon, adamw = steps("muon", weight_decay=0.1), steps("adamw", weight_decay=0.1)
    different = {path for path in muon if not np.allclose(muon[path], adamw[path], rtol=1e-4, atol=1e-7)}
    assert different == {"block1_pointwise/kernel", "block2_pointwise/kernel"}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_weight_decay_takes_the_same_share_of_every_kernel_and_nothing_of_norms_and_biases(kind):
    before = {path: np.array(weight) for path, weight in weights().items()}
    plain, decayed = steps(kind), steps(kind, weight_decay=0.5)
    for path, weight in before.items():
        share = 0.5 * RATE if path.endswith("kernel") else 0.0
        np.testing.assert_allclose(decayed[path] - plain[path], -share * weight, rtol=1e-2, atol=1e-6)


def test_clip_norm_scales_all_gradients_down_together():
    step = steps("adamw", epsilon=1.0, clip_norm=1e-3)  # with that epsilon a first step is so much of its gradient
    length = np.sqrt(sum((part**2).sum() for part in step.values()))
    assert length == pytest.approx(RATE * np.sqrt(1 - 0.999) * 1e-3, rel=1e-2)


def test_registry_has_a_builder_for_each_optimizer_of_the_config():
    assert set(OPTIMIZERS) == set(get_args(OptimizationConfig.model_fields["optimizer"].annotation))
