"""What a test reads off a figure: its title, its pixels and how near they come to its edges."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray


def title(figure: Figure) -> str:
    return "\n".join([figure.get_suptitle(), *(text.get_text() for text in figure.texts)])


def drawn(figure: Figure) -> NDArray:
    """The figure's pixels, (height, width, 4)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]


def ink(figure: Figure) -> tuple[int, int, int, int]:
    """(left, right, top, bottom): pixels between what is drawn and the figure's edges."""
    dark = drawn(figure)[..., :3].min(axis=-1) < 250
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    return columns[0], dark.shape[1] - 1 - columns[-1], rows[0], dark.shape[0] - 1 - rows[-1]
