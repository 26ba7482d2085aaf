"""The learning rate as a function of the step."""

import keras
from keras import ops


class LearningRateSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Up to the peak over the warm-up, then down, over a fixed number of steps.

    - constant: the peak throughout, no warm-up.
    - one_cycle: linear up, then down to peak / 20 in two thirds of the other steps and to 0 in the last third
      (after Smith 2018, arXiv 1803.09820; with a warm-up of 0.4 exactly that of github.com/locuslab/convmixer-cifar10).
    - cosine: linear up, then down half a cosine to 0 (Loshchilov & Hutter 2017, arXiv 1608.03983, equation 5).
    """

    def __init__(self, kind: str, *, peak: float, steps: int, warmup_fraction: float) -> None:
        self.kind = kind
        self.peak = peak
        self.steps = steps
        self.warmup_fraction = warmup_fraction

    def __call__(self, step: int | keras.KerasTensor) -> keras.KerasTensor:
        """The rate of a step counted from 0: a float32 scalar."""
        done = (ops.cast(step, "float32") + 0.5) / self.steps  # at its middle, so that no step is spent at a rate of 0
        return self.peak * {"constant": _constant, "one_cycle": _one_cycle, "cosine": _cosine}[self.kind](
            done, self.warmup_fraction
        )

    def get_config(self) -> dict[str, object]:
        """The arguments, as Keras wants them."""
        return {"kind": self.kind, "peak": self.peak, "steps": self.steps, "warmup_fraction": self.warmup_fraction}


def _constant(done: keras.KerasTensor, warmup: float) -> keras.KerasTensor:
    return ops.ones_like(done)


def _one_cycle(done: keras.KerasTensor, warmup: float) -> keras.KerasTensor:
    low = warmup + (1 - warmup) * 2 / 3
    return _ramp(done, 0.0, warmup) - (19 / 20) * _ramp(done, warmup, low) - (1 / 20) * _ramp(done, low, 1.0)


def _cosine(done: keras.KerasTensor, warmup: float) -> keras.KerasTensor:
    fall = (1 + ops.cos(ops.arccos(-1.0) * _ramp(done, warmup, 1.0))) / 2
    return _ramp(done, 0.0, warmup) * fall


def _ramp(x: keras.KerasTensor, start: float, end: float) -> keras.KerasTensor:
    """0 up to start, 1 from end on, linear between; 1 throughout where they meet."""
    return ops.clip((x - start) / (end - start), 0.0, 1.0) if end > start else ops.ones_like(x)
