"""What all figures share: colours, resolution, text that fits, places in inches."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

DPI = 150
# Okabe and Ito (2008), "Color Universal Design": told apart by colour-blind readers, and in grey
VERMILLION = "#D55E00"
BLUE = "#0072B2"
COLOURS = (VERMILLION, BLUE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # yellow does not show on white
GREY = "0.45"  # grey, for what should not draw the eye


def finite_or_nan(values: Sequence[float] | NDArray) -> NDArray:
    """The numbers, with NaN for the infinite, which no axis can show."""
    numbers = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def ellipsize(name: str, inches: float, size: float) -> str:
    """The name in the width there is at `size` points: a long one loses its middle, as the ends tell names apart."""
    name = "".join(map(_drawable, " ".join(name.split()))).rstrip()
    keep = min(len(name), int(72 * inches / (0.25 * size)))  # an i is a quarter as wide as high
    fitted = name
    while width_of(fitted, size) > inches and keep > 2:
        keep -= 1
        fitted = f"{name[: keep - keep // 2]}…{name[-(keep // 2) :]}"
    return fitted


@cache
def _drawable(character: str) -> str:
    """The character, or its code point where the default font would draw the same empty box for every such one."""
    here = get_font(findfont(FontProperties())).get_char_index(ord(character))
    return character if here else f"U+{ord(character):04X} "


def width_of(text: str, size: float) -> float:
    """Inches, in the default font."""
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0] / 72


def draw_title(figure: Figure, *lines: str) -> None:
    """Write the lines that are not empty at the top; five fit in an inch."""
    top = 1 - 0.12 / figure.get_figheight()
    figure.text(0.5, top, "\n".join(filter(None, lines)), ha="center", va="top", fontsize=11, parse_math=False)


def text_figure(text: str) -> Figure:
    """A small figure of words, where there is nothing to draw."""
    figure = Figure(figsize=(6.4, 1.6), dpi=DPI)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=14, parse_math=False)
    return figure


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches, so that nothing need be laid out again when drawn."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / down, width / across, height / down))
