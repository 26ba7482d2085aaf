"""How a gradient becomes a step: AdamW, or Muon for the convolutions over channels and AdamW for the rest."""

import math

import keras
import tensorflow as tf

from pipeline.model.conv_mixer import is_pointwise_kernel


def build_optimizer(
    kind: str,
    rate: keras.optimizers.schedules.LearningRateSchedule,
    *,
    weight_decay: float,
    epsilon: float,
    clip_norm: float | None,
    ema_momentum: float | None,
    decay_norm_and_bias: bool,
) -> keras.optimizers.Optimizer:
    """An optimizer as Keras has it.

    - adamw: Loshchilov & Hutter 2019, arXiv 1711.05101.
    - muon: see `Muon`.

    Args:
        weight_decay: share of each weight that a step takes away, times the learning rate.
        epsilon: AdamW's, against division by zero.
        clip_norm: gradients are scaled down to this L2 norm of all together, those of all devices added up.
        ema_momentum: share of a moving average of the weights that each step keeps; None: there is none.
        decay_norm_and_bias: decay batch norm's scales and shifts and all biases too.
    """
    common = {
        "weight_decay": weight_decay,
        "epsilon": epsilon,
        "global_clipnorm": clip_norm,
        "use_ema": ema_momentum is not None,
        "ema_momentum": ema_momentum or 0.0,
    }
    made = Muon(rate, adam_weight_decay=weight_decay, **common) if kind == "muon" else AdamW(rate, **common)
    if not decay_norm_and_bias:
        made.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return made


class GlobalClipMixin(keras.optimizers.Optimizer):
    """Clips what the gradients of all devices add up to; Keras 3.15 clips each device's own, and adds up then.

    On one device that is Keras' own clipping, to the last bit.
    """

    def _clip_gradients(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        return gradients

    def _all_reduce_sum_gradients(self, pairs: list[tuple[tf.Tensor, tf.Variable]]) -> list[tuple]:
        gradients, variables = zip(*super()._all_reduce_sum_gradients(pairs), strict=True)
        return list(zip(super()._clip_gradients(gradients), variables, strict=True))


class AdamW(GlobalClipMixin, keras.optimizers.AdamW):
    """Keras' own but for the clipping."""


class Muon(GlobalClipMixin, keras.optimizers.Muon):
    """Steps of the pointwise convolutions' matrices (channels in, channels out) in which all directions are as long.

    Keras' own leaves every weight of more than two axes to AdamW, also such a convolution's (1, 1, in, out).
    Jordan 2024, kellerjordan.github.io/posts/muon; scaled as by Liu et al. 2025 (arXiv 2502.16982), so that a learning
    rate and a weight decay of AdamW suit both.
    """

    def _should_use_adamw(self, variable: keras.Variable) -> bool:
        return not is_pointwise_kernel(variable)

    def lr_adjust(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return x * (self.rms_rate * math.sqrt(max(x.shape[-2:])))
