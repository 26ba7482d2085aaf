"""Optimizers by name: AdamW, or Muon for the pointwise convolutions and AdamW for all other weights."""

import math
from collections.abc import Callable

import keras
import tensorflow as tf

from pipeline.config.training import OptimizationConfig
from pipeline.model.conv_mixer import is_pointwise_kernel


def build_optimizer(
    config: OptimizationConfig,
    learning_rate: keras.optimizers.schedules.LearningRateSchedule,
    *,
    ema_momentum: float | None = None,
) -> keras.optimizers.Optimizer:
    """Build the optimizer that the settings name; see `OPTIMIZERS`.

    Args:
        config: `clip_norm` applies to the gradients of all variables together, those of all devices added up.
        learning_rate: Learning rate as a function of the step.
        ema_momentum: Share of a moving average of the weights that each step keeps; None keeps no average.
    """
    optimizer = OPTIMIZERS[config.optimizer](
        config,
        learning_rate=learning_rate,
        weight_decay=config.weight_decay,
        global_clipnorm=config.clip_norm,
        use_ema=ema_momentum is not None,
        ema_momentum=ema_momentum or 0.0,
    )
    if not config.decay_norm_and_bias:
        optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return optimizer


class GlobalClipMixin(keras.optimizers.Optimizer):
    """Clip the sum of the gradients of all devices; Keras 3.15 clips each device's gradients before it adds them.

    On one device the result is that of Keras, to the last bit.
    """

    def _clip_gradients(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        return gradients

    def _all_reduce_sum_gradients(self, pairs: list[tuple[tf.Tensor, tf.Variable]]) -> list[tuple]:
        gradients, variables = zip(*super()._all_reduce_sum_gradients(pairs), strict=True)
        return list(zip(super()._clip_gradients(gradients), variables, strict=True))


class AdamW(GlobalClipMixin, keras.optimizers.AdamW):
    """Keras' AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with `GlobalClipMixin`."""


class Muon(GlobalClipMixin, keras.optimizers.Muon):
    """Muon for the kernels of the pointwise convolutions, as matrices (channels in, channels out); AdamW for the rest.

    Its steps are equally long in all directions of the matrix. Keras' Muon leaves all weights of more than two axes to
    AdamW, and with them a pointwise kernel (1, 1, in, out).

    Jordan 2024, kellerjordan.github.io/posts/muon; scaled as by Liu et al. 2025 (arXiv 2502.16982), so that AdamW's
    learning rate and weight decay suit both.
    """

    def _should_use_adamw(self, variable: keras.Variable) -> bool:
        return not is_pointwise_kernel(variable)

    def lr_adjust(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return x * (self.rms_rate * math.sqrt(max(x.shape[-2:])))


def _build_adamw(config: OptimizationConfig, **common: object) -> keras.optimizers.Optimizer:
    return AdamW(epsilon=config.adam_epsilon, **common)


def _build_muon(config: OptimizationConfig, **common: object) -> keras.optimizers.Optimizer:
    return Muon(epsilon=config.adam_epsilon, adam_weight_decay=config.weight_decay, **common)


# Each builder takes the settings, and the arguments that all of Keras' optimizers share.
OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "adamw": _build_adamw,
    "muon": _build_muon,
}
