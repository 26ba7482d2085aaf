"""The scale of an axis for accuracies and losses, on which the good values can be told apart."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from pipeline.evaluation.figures.style import spans_decades

# added to the error, so that an accuracy of 1 has a place on the axis
ERROR_FLOOR = 0.0005
# an accuracy from which on the error is what differs
HIGH_ACCURACY = 0.98
ACCURACY_TICKS = (0, 0.2, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 1)


@dataclass(frozen=True)
class ValueScale:
    """A scale of values: linear, logarithmic, or logarithmic in the error of accuracies."""

    kind: Literal["linear", "log", "error"]
    is_accuracy: bool

    @property
    def note(self) -> str:
        """Return what the label of the axis says of the scale, empty if it is linear."""
        return {"linear": "", "log": " (log scale)", "error": " (log scale of the error)"}[self.kind]

    def forward(self, values: NDArray) -> NDArray:
        """Return where the values lie on the axis, in units of its own."""
        if self.kind == "error":
            return -np.log10(np.maximum(1 + ERROR_FLOOR - np.asarray(values), 1e-9))
        return np.log10(values) if self.kind == "log" else np.asarray(values)

    def inverse(self, places: NDArray) -> NDArray:
        """Return the values that lie at these places."""
        if self.kind == "error":
            return 1 + ERROR_FLOOR - 10.0 ** -np.asarray(places)
        return 10.0 ** np.asarray(places) if self.kind == "log" else np.asarray(places)

    def apply(self, axes: Axes, values: NDArray) -> None:
        """Give a y axis this scale, its ticks, and limits around the finite values that are drawn on it."""
        shown = values[np.isfinite(values)]
        if self.kind == "log":
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if self.kind == "error":
            functions: tuple[Callable[[NDArray], NDArray], ...] = (self.forward, self.inverse)
            axes.set_yscale("function", functions=functions)
            axes.yaxis.set_major_locator(FixedLocator(ACCURACY_TICKS))
            axes.yaxis.set_minor_locator(NullLocator())
            low, high = self.forward(np.array([shown.min(), shown.max()]))
            margin = 0.05 * (high - low)
            axes.set_ylim(*self.inverse(np.array([low - margin, high + margin])))
        elif self.is_accuracy and shown.size:
            low, high = axes.get_ylim()
            if high - low < 0.02:
                low, high = shown.min() - 0.01, shown.max() + 0.01
            # no accuracy is above 1
            axes.set_ylim(low, min(high, 1 + 0.02 * (1 - low)))
        if self.is_accuracy:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: accuracy_label(value)))


def value_scale(values: NDArray, *, is_accuracy: bool, falls: bool = False) -> ValueScale:
    """Return the scale on which the good ones among the values can be told apart.

    Accuracies of which the best are close to 1 get a scale of their error, losses that span more than a factor of 20 a
    log scale; an accuracy near chance needs none.

    Args:
        values: Those that are drawn; others than finite ones do not count.
        is_accuracy: They are fractions, the best is 1.
        falls: They are the better, the smaller.
    """
    shown = values[np.isfinite(values)]
    if is_accuracy and shown.size and shown.max() >= HIGH_ACCURACY and spans_decades(1 + ERROR_FLOOR - shown):
        return ValueScale("error", is_accuracy=True)
    if falls and spans_decades(shown):
        return ValueScale("log", is_accuracy=is_accuracy)
    return ValueScale("linear", is_accuracy=is_accuracy)


def _short(value: float) -> str:
    """Return the label of a tick on a log scale: 0.02, 500, 2e5."""
    text = f"{value:g}"
    return text if len(text) <= 5 else f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")


def accuracy_label(value: float) -> str:
    """Return the label of a tick at an accuracy, `80 %` or `99.5 %`, with no more digits than it needs."""
    return f"{100 * value:.4g} %"
