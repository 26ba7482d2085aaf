"""Figure of class activation maps: for some images, which of their parts speak for a class and which against it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, Normalize
from numpy.typing import NDArray

from pipeline.evaluation.figures.image_grid import class_and_probability
from pipeline.evaluation.figures.style import (
    BLUE,
    DPI,
    GREY,
    VERMILLION,
    Figure,
    axes_at,
    default_style,
    draw_title,
    ellipsize,
    text_figure,
)
from pipeline.runtime.text import percent

COLUMNS = 2  # examples side by side
PANEL, GAP, BETWEEN = 1.5, 0.12, 0.45  # inches: width of a panel, between those of an example, between examples
TEXT = 0.62  # above and below a panel
# against a class and for it; how opaque they are says how much
SIGNS = ListedColormap([BLUE, VERMILLION])
KEY = LinearSegmentedColormap.from_list("evidence", [BLUE, "white", VERMILLION])
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601


@dataclass(frozen=True)
class ExplainedImage:
    """An image, and the maps of the predicted class and of another one."""

    image: NDArray[np.uint8]  # (h, w, c) of 1, 3 or 4 channels
    true: str
    predicted: str
    probability: float  # of the predicted class
    other: str  # the true class of a mistake, the second most probable one otherwise
    other_probability: float
    maps: NDArray[np.floating]  # (2, h, w): of the predicted class and of the other one; positive speaks for it


def area_of_half(evidence: NDArray[np.floating]) -> float:
    """Return in which share of an image half of the evidence for a class lies; NaN if nothing speaks for it.

    Args:
        evidence: The class's map; what is negative is no evidence for it.
    """
    sorted_evidence = np.sort(np.maximum(evidence.astype(np.float64), 0), axis=None)[::-1]
    total = sorted_evidence.sum()
    if total == 0:
        return float("nan")
    # without the rounding error of a sum, that of half of all pixels could be one short
    reached = np.cumsum(sorted_evidence) >= 0.5 * total * (1 - 1e-9)
    return float((1 + reached.argmax()) / sorted_evidence.size)


@default_style()
def class_activation(examples: Sequence[ExplainedImage], *, title: str, notes: Sequence[str], none: str) -> Figure:
    """Draw each image beside its maps, which lie over it in colours: red speaks for the class, blue against.

    Args:
        examples: The images; there may be none.
        title: Of the figure.
        notes: Lines below the title.
        none: What the figure says if there are no images.
    """
    if not examples:
        return text_figure(none, title=title)
    height, width = examples[0].image.shape[:2]
    panel_height = PANEL * min(max(height / width, 0.25), 4)
    columns = min(COLUMNS, len(examples))
    rows = -(-len(examples) // columns)
    example_width, row_height = 3 * PANEL + 2 * GAP, panel_height + TEXT
    drawn_width = columns * example_width + (columns - 1) * BETWEEN
    figure_width, figure_height = max(drawn_width + 0.4, 6.4), rows * row_height + 1.45
    figure = Figure(figsize=(figure_width, figure_height), dpi=DPI)
    draw_title(
        figure,
        title,
        *notes,
        "left: the image and its true class",
        "below: in how much of the image half of the evidence for the class lies",
        "each image on its own scale",
    )
    left = (figure_width - drawn_width) / 2
    for number, example in enumerate(examples):
        row, column = divmod(number, columns)
        x = left + column * (example_width + BETWEEN)
        y = figure_height - 0.9 - (row + 1) * row_height + 0.3
        panels = [axes_at(figure, x + i * (PANEL + GAP), y, PANEL, panel_height) for i in range(3)]
        _draw_example(panels, example)
    key = axes_at(figure, figure_width / 2 - 1, 0.38, 2, 0.12)
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 1), KEY), cax=key, orientation="horizontal")
    bar.set_ticks([-1, 0, 1], labels=["against the class", "0", "for it"], fontsize=8)
    return figure


def _draw_example(panels: Sequence[Axes], example: ExplainedImage) -> None:
    is_mistake = example.true != example.predicted
    panels[0].imshow(example.image, cmap="gray", vmin=0, vmax=255, interpolation="auto")
    _write(panels[0], example.true, BLUE)
    largest = float(np.abs(example.maps).max()) or 1.0
    classes = (
        (example.predicted, example.probability, VERMILLION if is_mistake else BLUE),
        (example.other, example.other_probability, BLUE if is_mistake else GREY),
    )
    for axes, evidence, (name, probability, color) in zip(panels[1:], example.maps, classes, strict=True):
        axes.imshow(_faded(example.image), cmap="gray", vmin=0, vmax=1, interpolation="auto")
        # where there is no evidence the image shows
        strength = np.abs(evidence) / largest
        axes.imshow(
            evidence, cmap=SIGNS, norm=Normalize(-largest, largest), alpha=0.85 * strength, interpolation="nearest"
        )
        area = area_of_half(evidence)
        _write(axes, class_and_probability(name, probability), color)
        axes.set_xlabel("no evidence" if np.isnan(area) else f"half in {percent(area)}", fontsize=8, labelpad=3)
    for axes in panels:
        # grey shows through transparent pixels
        axes.set(xticks=[], yticks=[], facecolor="0.85")


def _write(axes: Axes, text: str, color: str) -> None:
    axes.set_title(ellipsize(text, PANEL, 8.5), fontsize=8.5, color=color, pad=3, parse_math=False)


def _faded(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return an image (h, w) in grey from 0.35 to 1, on which colours show."""
    pixels = image / 255
    grey = pixels[..., 0] if image.shape[-1] < 3 else pixels[..., :3] @ np.array(LUMINANCE)
    return 0.35 + 0.65 * grey
