"""The style that all figures share: colours, resolution, text that fits, axes placed in inches; never the user's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

# Matplotlib would import it when the first figure is saved, after training
import matplotlib.backends.backend_agg
import matplotlib.figure
import numpy as np
from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

DPI = 150
# Okabe and Ito (2008), "Color Universal Design": distinct for colour-blind readers, and in grey
VERMILLION = "#D55E00"
BLUE = "#0072B2"
GREEN = "#009E73"
# without its yellow, which does not show on white
COLORS = (VERMILLION, BLUE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "0.45"  # for what should not draw the eye


@contextmanager
def default_style() -> Iterator[None]:
    """Context manager, also a decorator: use Matplotlib's own defaults, whatever a matplotlibrc or a notebook has set.

    Every function that returns a figure is decorated with it, as axes read their style when they are created.
    """
    # the salt makes the same figure the same SVG
    with rc_context(rcParamsDefault | {"svg.hashsalt": "convmixer"}):
        yield


class Figure(matplotlib.figure.Figure):
    """A figure that is saved in the default style too: ticks and text read it when they are drawn."""

    @default_style()
    def savefig(self, fname: Any, **options: Any) -> None:
        """Write the figure; the same figure gives the same bytes, in SVG too, whose letters are outlines."""
        if (options.get("format") or Path(str(fname)).suffix.removeprefix(".")) == "svg":
            options.setdefault("metadata", {"Date": None})
        super().savefig(fname, **options)


def finite_or_nan(values: Sequence[float] | NDArray) -> NDArray:
    """Return the numbers with NaN in place of the infinite ones, which no axis can show."""
    numbers = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def spans_decades(values: NDArray) -> bool:
    """Return whether finite values need a log scale: they are positive and span more than a factor of 20."""
    return bool(values.size and values.min() > 0 and values.max() > 20 * values.min())


def ellipsize(name: str, inches: float, size: float) -> str:
    """Return the name, shortened to a width in inches at a font size in points.

    A long name loses its middle, as the ends tell names apart.
    """
    name = "".join(map(_drawable, " ".join(name.split()))).rstrip()
    # An "i" is a quarter as wide as it is high, so that no more characters than this can fit.
    keep = min(len(name), int(72 * inches / (0.25 * size)))
    shortened = name
    while text_width(shortened, size) > inches and keep > 2:
        keep -= 1
        shortened = f"{name[: keep - keep // 2]}…{name[-(keep // 2) :]}"
    return shortened


@cache
def _drawable(character: str) -> str:
    """Return the character, or its code point if the default font lacks it: it draws one box for all of those."""
    in_font = get_font(findfont(FontProperties())).get_char_index(ord(character))
    return character if in_font else f"U+{ord(character):04X} "


def text_width(text: str, size: float) -> float:
    """Return the width of a text in inches, in the default font at a size in points."""
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0] / 72


def titled(what: str, subject: str) -> str:
    """Return the title of a figure: what it shows and, after a colon, of which data, split and run."""
    return f"{what}: {subject}" if subject else what


def draw_title(figure: Figure, title: str, *notes: str) -> None:
    """Write a title of one line at the top of a figure, and the notes that are not empty in smaller letters below.

    The title takes 0.35 inches from the top, each line of notes 0.17 inches.
    """
    height, room = figure.get_figheight(), figure.get_figwidth() - 0.4
    top = 1 - 0.12 / height
    figure.text(0.5, top, ellipsize(title, room, 11), ha="center", va="top", fontsize=11, parse_math=False)
    lines: list[str] = []
    for note in filter(None, notes):
        note = ellipsize(note, room, 9)
        if lines and text_width(f"{lines[-1]}; {note}", 9) <= room:
            lines[-1] += f"; {note}"
        else:
            lines.append(note)
    if lines:
        style: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 9, "color": "0.3", "parse_math": False}
        figure.text(0.5, top - 0.23 / height, "\n".join(lines), **style)


@default_style()
def text_figure(text: str, *, title: str = "") -> Figure:
    """Return a small figure that holds a text, for when there is nothing to draw."""
    figure = Figure(figsize=(6.4, 1.6), dpi=DPI)
    if title:
        draw_title(figure, title)
    figure.text(0.5, 0.45 if title else 0.5, text, ha="center", va="center", fontsize=12, parse_math=False)
    return figure


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes at a place given in inches, so that no layout has to be computed when the figure is drawn."""
    figure_width, figure_height = figure.get_size_inches()
    return figure.add_axes((left / figure_width, bottom / figure_height, width / figure_width, height / figure_height))


def strip_frame(axes: Axes) -> None:
    """Remove the frame at the top and the right, and draw a faint horizontal grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
