"""Learning-rate schedules: the learning rate as a function of the step."""

from collections.abc import Callable

import keras
from keras import ops


class LearningRateSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate that rises to its peak during the warm-up and then falls, over a fixed number of steps.

    Kinds:

    - constant: The peak throughout, without warm-up.
    - one_cycle: Linear rise, then linear fall to peak / 20 in two thirds of the remaining steps and to 0 in the last
      third (after Smith 2018, arXiv 1803.09820; with a warm-up of 0.4 exactly that of
      github.com/locuslab/convmixer-cifar10).
    - cosine: Linear rise, then half a cosine down to 0 (Loshchilov & Hutter 2017, arXiv 1608.03983, equation 5).

    Args:
        kind: One of `SCHEDULES`.
        peak: Highest learning rate.
        steps: Number of training steps of all epochs.
        warmup_fraction: Share of the steps in which the learning rate rises.
    """

    def __init__(self, kind: str, *, peak: float, steps: int, warmup_fraction: float) -> None:
        self.kind = kind
        self.peak = peak
        self.steps = steps
        self.warmup_fraction = warmup_fraction

    def __call__(self, step: int | keras.KerasTensor) -> keras.KerasTensor:
        """Return the learning rate of a step counted from 0: a float32 scalar."""
        # taken at the middle of the step, so that no step has a learning rate of 0
        progress = (ops.cast(step, "float32") + 0.5) / self.steps
        return self.peak * SCHEDULES[self.kind](progress, self.warmup_fraction)

    def get_config(self) -> dict[str, object]:
        """Return the arguments of the constructor, for Keras' serialization."""
        return {"kind": self.kind, "peak": self.peak, "steps": self.steps, "warmup_fraction": self.warmup_fraction}


def _constant(progress: keras.KerasTensor, warmup: float) -> keras.KerasTensor:
    return ops.ones_like(progress)


def _one_cycle(progress: keras.KerasTensor, warmup: float) -> keras.KerasTensor:
    knee = warmup + (1 - warmup) * 2 / 3
    rise = _ramp(progress, 0.0, warmup)
    return rise - (19 / 20) * _ramp(progress, warmup, knee) - (1 / 20) * _ramp(progress, knee, 1.0)


def _cosine(progress: keras.KerasTensor, warmup: float) -> keras.KerasTensor:
    fall = (1 + ops.cos(ops.arccos(-1.0) * _ramp(progress, warmup, 1.0))) / 2
    return _ramp(progress, 0.0, warmup) * fall


def _ramp(x: keras.KerasTensor, start: float, end: float) -> keras.KerasTensor:
    """Return 0 up to start, 1 from end on and linear values between; 1 throughout if start and end are equal."""
    return ops.clip((x - start) / (end - start), 0.0, 1.0) if end > start else ops.ones_like(x)


# Factors of the peak as functions of the progress, from 0 to 1, and of the warm-up's share.
SCHEDULES: dict[str, Callable[[keras.KerasTensor, float], keras.KerasTensor]] = {
    "constant": _constant,
    "one_cycle": _one_cycle,
    "cosine": _cosine,
}
