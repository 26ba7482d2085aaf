"""Grids of images with a line above and lines below each: images that need a look, with what is said of them."""

from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import PurePosixPath

from numpy import uint8
from numpy.typing import NDArray

from pipeline.evaluation.figures.style import (
    BLUE,
    DPI,
    GREY,
    VERMILLION,
    Figure,
    default_style,
    draw_title,
    ellipsize,
    text_figure,
    titled,
)
from pipeline.runtime.text import count, percent


@default_style()
def image_grid(
    images: NDArray[uint8],
    *,
    above: Sequence[str],
    below: Sequence[str],
    files: Sequence[str] = (),
    title: str,
    notes: Sequence[str],
) -> Figure:
    """Draw images in about as many rows as columns, in their own colours.

    Args:
        images: (n, h, w, c) of 1, 3 or 4 channels, at least one.
        above: (n,) a line above each, which must fit.
        below: (n,) a line below each; long ones are shortened.
        files: (n,) paths of their files, empty where there are none; the last part is written below each.
        title: Of the figure.
        notes: Lines below the title.
    """
    number, height, width = images.shape[:3]
    columns = ceil(sqrt(number))
    rows = ceil(number / columns)
    image_height = 1.6 * min(max(height / width, 0.25), 4)  # inches, as all below
    text_height = 0.64 if any(files) else 0.5
    figure_width, figure_height = max(1.8 * columns, 6.4), (image_height + text_height) * rows + 0.7
    figure = Figure(figsize=(figure_width, figure_height), dpi=DPI)
    figure.subplots_adjust(
        left=0.1 / figure_width,
        right=1 - 0.1 / figure_width,
        bottom=(text_height - 0.2) / figure_height,
        top=1 - 0.9 / figure_height,
        wspace=0.1,
        hspace=text_height / image_height,
    )
    draw_title(figure, title, *notes)
    grid = iter(figure.subplots(rows, columns, squeeze=False).flat)
    names = [PurePosixPath(file).name for file in files] or [""] * number
    for image, line_above, line_below, file in zip(images, above, below, names, strict=True):
        axes = next(grid)
        # "auto" interpolates where the image is reduced; where it is enlarged it takes the nearest pixel
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="auto")
        axes.set_title(line_above, fontsize=8.5, color=VERMILLION, pad=3, parse_math=False)
        axes.set_xlabel(ellipsize(line_below, 1.6, 8.5), fontsize=8.5, color=BLUE, labelpad=3, parse_math=False)
        axes.annotate(
            ellipsize(file, 1.7, 7),
            xy=(0.5, 0),
            xytext=(0, -15),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=7,
            color=GREY,
            parse_math=False,
        )
        # grey shows through transparent pixels
        axes.set(xticks=[], yticks=[], facecolor="0.85")
    for unused in grid:
        unused.set_axis_off()
    return figure


def class_and_probability(name: str, probability: float) -> str:
    """Return the line above an image: a class, shortened, and its probability."""
    return f"{ellipsize(name, 1.05, 8.5)} ({percent(probability)})"


def mislabeled_images(
    images: NDArray[uint8],
    *,
    given: Sequence[str],
    suggested: Sequence[str],
    probabilities: Sequence[float],
    found: int,
    of: int,
    files: Sequence[str] = (),
    subject: str = "",
) -> Figure:
    """Draw images that are probably mislabeled, the suggested class above, the given class and the file below.

    Args:
        images: (n, h, w, c) of 1, 3 or 4 channels, the most probable ones; n may be 0.
        given: (n,) names of the classes of their labels.
        suggested: (n,) names of the classes to which they probably belong.
        probabilities: (n,) of the suggested classes.
        found: Number of all images that are probably mislabeled.
        of: Number of all images.
        files: (n,) paths of their files, empty where there are none.
        subject: Of which data and run, for the title.
    """
    title = titled("Probably mislabeled", subject)
    if not len(images):
        return text_figure(f"none of {count(of, 'image')}", title=title)
    which = f"all {found}" if found == len(images) else f"the {len(images)} most probable of {found:,}"
    below = "class of the label, file" if any(files) else "class of the label"
    return image_grid(
        images,
        above=[class_and_probability(*one) for one in zip(suggested, probabilities, strict=True)],
        below=given,
        files=files,
        title=title,
        notes=[f"{which}, in {count(of, 'image')}", f"above: suggested class, its probability; below: {below}"],
    )
