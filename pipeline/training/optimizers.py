"""Optimizers by name: AdamW, or Muon for the pointwise convolutions and AdamW for all other weights."""

import math
from collections.abc import Callable

import keras
import tensorflow as tf

from pipeline.config.training import OptimizationConfig
from pipeline.model.conv_mixer import is_pointwise_kernel

BETA_1, BETA_2 = 0.9, 0.999  # Keras' own defaults, for AdamW and for Muon's part of it


def build_optimizer(
    config: OptimizationConfig,
    learning_rate: keras.optimizers.schedules.LearningRateSchedule,
    *,
    ema_momentum: float | None = None,
    gradient_accumulation: int = 1,
    share_of: Callable[[str], float] | None = None,
) -> keras.optimizers.Optimizer:
    """Build the optimizer that the settings name; see `OPTIMIZERS`.

    Args:
        config: `clip_norm` applies to the gradients of all variables together, those of all devices added up.
        learning_rate: Learning rate as a function of the step; of the steps of one update, that of the last one counts.
        ema_momentum: Share of a moving average of the weights that each step keeps; None keeps no average.
        gradient_accumulation: Number of steps whose gradients make one update.
        share_of: The share of the learning rate that a variable is trained with, by its path; None trains all alike.
    """
    optimizer = OPTIMIZERS[config.optimizer](
        config,
        learning_rate=learning_rate,
        weight_decay=config.weight_decay,
        global_clipnorm=config.clip_norm,
        use_ema=ema_momentum is not None,
        ema_momentum=ema_momentum or 0.0,
        # Keras takes no 1
        gradient_accumulation_steps=gradient_accumulation if gradient_accumulation > 1 else None,
    )
    optimizer.share_of = share_of
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


class RateShareMixin(keras.optimizers.Optimizer):
    """Train each variable, and decay it, with its own share of the learning rate.

    Where all have the whole, the result is that of Keras, to the last bit.

    Attributes:
        share_of: Takes a variable's path; set before the optimizer is built.
    """

    share_of: Callable[[str], float] | None = None
    _share = 1.0
    _shares: tuple[float, ...] = ()

    def build(self, variables: list[keras.Variable]) -> None:
        super().build(variables)
        if self.share_of:
            self._shares = tuple(map(self.share_of, (variable.path for variable in variables)))

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        if self._shares:
            learning_rate = learning_rate * self._shares[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate)

    def _apply_weight_decay(self, variables: list[keras.Variable]) -> None:
        if not self._shares:
            return super()._apply_weight_decay(variables)
        # Keras multiplies the decay by the optimizer's learning rate
        for variable in variables:
            self._share = self._shares[self._get_variable_index(variable)]
            super()._apply_weight_decay([variable])
        self._share = 1.0
        return None

    def _get_current_learning_rate(self) -> keras.KerasTensor:
        learning_rate = super()._get_current_learning_rate()
        return learning_rate if self._share == 1 else learning_rate * self._share


class ShortTraceMixin(keras.optimizers.Optimizer):
    """Compute once per step what Keras computes once per variable, and apply Adam in fewer operations.

    Keras' own update made half of the operations of a small network's step, and so half of the time to trace it. The
    result is that of Keras, to the last bit.
    """

    _step_rate: tf.Tensor | None = None
    _corrections: tuple[tf.Tensor, tf.Tensor] | None = None

    def _backend_apply_gradients(self, gradients: list[tf.Tensor], variables: list[keras.Variable]) -> None:
        self._step_rate = super()._get_current_learning_rate()
        try:
            super()._backend_apply_gradients(gradients, variables)
        finally:
            self._step_rate = None

    def _get_current_learning_rate(self) -> keras.KerasTensor:
        return super()._get_current_learning_rate() if self._step_rate is None else self._step_rate

    def _backend_update_step(
        self, gradients: list[tf.Tensor], variables: list[keras.Variable], learning_rate: tf.Tensor
    ) -> None:
        # several devices update their copies of a variable in functions of their own
        if self._distribution_strategy.num_replicas_in_sync == 1:
            step = tf.cast(self.iterations + 1, tf.float32)
            self._corrections = 1 - tf.pow(BETA_1, step), tf.sqrt(1 - tf.pow(BETA_2, step))
        try:
            super()._backend_update_step(gradients, variables, learning_rate)
        finally:
            self._corrections = None

    def _apply_adam(
        self,
        gradient: tf.Tensor,
        variable: tf.Variable,
        learning_rate: tf.Tensor,
        momentum: keras.Variable,
        velocity: keras.Variable,
    ) -> bool:
        """Apply Adam's step to a variable and to its averages; return false if Keras has to do so."""
        if self._corrections is None or variable.dtype != tf.float32:
            return False
        gradient, rate = tf.cast(gradient, tf.float32), tf.cast(learning_rate, tf.float32)
        first, second = self._corrections
        m, v = momentum.value, velocity.value
        m.assign_add((gradient - m) * (1 - BETA_1), read_value=False)
        v.assign_add((tf.square(gradient) - v) * (1 - BETA_2), read_value=False)
        step = m * (rate * second / first) / (tf.sqrt(v) + self.epsilon)
        variable.assign_sub(step, read_value=False)
        return True


class ShortTraceAdamW(ShortTraceMixin, keras.optimizers.AdamW):
    """Keras' AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with fewer operations."""

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        number = self._get_variable_index(variable)
        if not self._apply_adam(gradient, variable, learning_rate, self._momentums[number], self._velocities[number]):
            super().update_step(gradient, variable, learning_rate)


class AdamW(RateShareMixin, GlobalClipMixin, ShortTraceAdamW):
    """AdamW with a share of the learning rate for each variable, and gradients clipped together."""


class Muon(RateShareMixin, ShortTraceMixin, GlobalClipMixin, keras.optimizers.Muon):
    """Muon for the kernels of the pointwise convolutions, as matrices (channels in, channels out); AdamW for the rest.

    Its steps are equally long in all directions of the matrix. Keras' Muon leaves all weights of more than two axes to
    AdamW, and with them a pointwise kernel (1, 1, in, out).

    Jordan 2024, kellerjordan.github.io/posts/muon; scaled as by Liu et al. 2025 (arXiv 2502.16982), so that AdamW's
    learning rate and weight decay suit both.
    """

    def _should_use_adamw(self, variable: keras.Variable) -> bool:
        return not is_pointwise_kernel(variable)

    def _adamw_update_step(
        self,
        gradient: tf.Tensor,
        variable: tf.Variable,
        learning_rate: tf.Tensor,
        momentum: keras.Variable,
        velocity: keras.Variable,
    ) -> None:
        if not self._apply_adam(gradient, variable, learning_rate, momentum, velocity):
            super()._adamw_update_step(gradient, variable, learning_rate, momentum, velocity)

    def lr_adjust(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return x * (self.rms_rate * math.sqrt(max(x.shape[-2:])))


def _build_adamw(config: OptimizationConfig, **common: object) -> keras.optimizers.Optimizer:
    return AdamW(epsilon=config.adam_epsilon, **common)


def _build_muon(config: OptimizationConfig, **common: object) -> keras.optimizers.Optimizer:
    return Muon(
        epsilon=config.adam_epsilon,
        momentum=config.muon_momentum,
        adam_weight_decay=config.weight_decay,
        **common,
    )


# Each builder takes the settings, and the arguments that all of Keras' optimizers share.
OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "adamw": _build_adamw,
    "muon": _build_muon,
}
