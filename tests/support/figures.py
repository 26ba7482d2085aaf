"""What tests read off a figure: its title, its pixels and the margins around them."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray


def title(figure: Figure) -> str:
    """Return all text above the axes, a line each."""
    return "\n".join([figure.get_suptitle(), *(text.get_text() for text in figure.texts)])


def render(figure: Figure) -> NDArray:
    """Return the figure's pixels, (height, width, 4)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]


def margins(figure: Figure) -> tuple[int, int, int, int]:
    """Return the number of pixels left, right, above and below all that is drawn."""
    dark = render(figure)[..., :3].min(axis=-1) < 250
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    return columns[0], dark.shape[1] - 1 - columns[-1], rows[0], dark.shape[0] - 1 - rows[-1]


def points(axes: Axes, label: str) -> list[list[float]]:
    """Return the points (x, y) of the line with a label."""
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return np.asarray(line.get_xydata()).tolist()
