"""Figures of an evaluation: tables and images in, matplotlib Figure out; no files, no pyplot, no state."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from pipeline.evaluation.figures.style import (
    BLUE,
    COLORS,
    DPI,
    GREY,
    VERMILLION,
    Figure,
    default_style,
    draw_title,
    strip_frame,
    titled,
)
from pipeline.evaluation.figures.value_scale import accuracy_label
from pipeline.evaluation.significance import wilson_interval
from pipeline.runtime.text import count, percent

CONFIDENCE, ACCURACY = VERMILLION, BLUE
FEW_IMAGES = 5  # a bin of fewer says next to nothing
PALE_BLUE = "#8FBEDD"  # on which the hatching shows


@default_style()
def reliability_diagram(bins: pd.DataFrame, *, error: float, subject: str) -> Figure:
    """Draw the accuracy against the confidence of the model, and the number of images in each bin of confidence.

    After Guo et al. 2017 (arXiv 1706.04599), figures 1 and 2.

    Args:
        bins: See `metrics.reliability_table`.
        error: The expected calibration error, a fraction.
        subject: The images, in a few words.
    """
    images = int(bins["images"].sum())
    share = bins["images"] / images
    accuracy, confidence = (float((share * bins[name].fillna(0)).sum()) for name in ("accuracy", "confidence"))
    figure = Figure(figsize=(6.4, 7), dpi=DPI)
    draw_title(
        figure,
        titled("Calibration", subject),
        f"{count(images, 'image')}, expected calibration error {percent(error)} over {len(bins)} bins",
        f"lines: 95 % interval of the accuracy; hollow: fewer than {FEW_IMAGES} images",
    )
    figure.subplots_adjust(left=0.13, right=0.96, bottom=0.08, top=0.87, hspace=0.08)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _draw_bars(upper, bins)
    _draw_histogram(
        lower, bins, {"mean confidence": (confidence, CONFIDENCE, "--"), "accuracy": (accuracy, ACCURACY, "-")}
    )
    for panel in (upper, lower):
        panel.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        panel.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        strip_frame(panel)
    figure.align_ylabels([upper, lower])
    return figure


@default_style()
def accuracy_by_strength(table: pd.DataFrame, *, clean: float, subject: str) -> Figure:
    """Draw the accuracy on corrupted images over the strength, a line a corruption, and on the same images clean.

    Args:
        table: Columns corruption, strength (from 1) and accuracy.
        clean: Accuracy without corruption.
        subject: The images, in a few words.
    """
    by_strength = table.pivot_table(index="strength", columns="corruption", values="accuracy", sort=False)
    figure = Figure(figsize=(8, 4.6), dpi=DPI)
    draw_title(
        figure,
        titled("Accuracy under corruption", subject),
        f"clean {percent(clean)}, mean over corruptions and strengths {percent(table['accuracy'].mean())}",
    )
    figure.subplots_adjust(left=0.1, right=0.73, bottom=0.12, top=0.86)
    axes = figure.subplots()
    axes.axhline(clean, color=GREY, linestyle="--", linewidth=1, label="clean")
    for name, color, marker in zip(by_strength, COLORS, "osD^vPX", strict=False):
        label = str(name).replace("_", " ")
        line = axes.plot(by_strength.index, by_strength[name], color=color, marker=marker, markersize=6, label=label)
        line[0].set_clip_on(False)
    axes.set(xlabel="strength", ylabel="accuracy", xticks=list(by_strength.index))
    axes.margins(x=0.04)
    # where all are high, the axis shows what differs; 0 to 1 otherwise, as figures of several models are compared
    lowest = min(clean, *table["accuracy"])
    axes.set_ylim(0.9 if lowest >= 0.9 else 0, 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: accuracy_label(value)))
    strip_frame(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=9)
    return figure


@default_style()
def corrupted_examples(
    images: NDArray[np.uint8], *, corruptions: Sequence[str], strengths: Sequence[int], subject: str = ""
) -> Figure:
    """Draw one image under each corruption (a row) at each strength (a column), and clean on the left.

    Args:
        images: (corruptions, 1 + strengths, h, w, c) of 1, 3 or 4 channels.
        corruptions: Names of the rows.
        strengths: Of the columns, without the clean one.
        subject: The images, in a few words.
    """
    rows, columns, height, width = images.shape[:4]
    image_height = 1.3 * min(max(height / width, 0.25), 4)  # inches, as all below
    figure_width, figure_height = 1.4 * columns + 1.6, (image_height + 0.1) * rows + 0.8
    figure = Figure(figsize=(figure_width, figure_height), dpi=DPI)
    draw_title(figure, titled("Corruptions of one image", subject))
    figure.subplots_adjust(
        left=1.5 / figure_width,
        right=1 - 0.1 / figure_width,
        bottom=0.1 / figure_height,
        top=1 - 0.7 / figure_height,
        wspace=0.08,
        hspace=0.08,
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, name in enumerate(corruptions):
        for column in range(columns):
            axes = grid[row, column]
            axes.imshow(images[row, column], cmap="gray", vmin=0, vmax=255, interpolation="auto")
            # grey shows through transparent pixels
            axes.set(xticks=[], yticks=[], facecolor="0.85")
        label = str(name).replace("_", " ")
        grid[row, 0].set_ylabel(label, fontsize=9, rotation=0, ha="right", va="center", labelpad=6)
    for axes, title in zip(grid[0], ["clean", *(f"strength {strength}" for strength in strengths)], strict=True):
        axes.set_title(title, fontsize=9, pad=4)
    return figure


def _draw_bars(panel: Axes, bins: pd.DataFrame) -> None:
    """Draw accuracy as bars, its gap to the confidence hatched, and the diagonal of a well calibrated model."""
    known = bins[bins["images"] > 0]
    widths = _widths(known)
    few = known["images"] < FEW_IMAGES
    style: dict[str, Any] = {"align": "edge", "linewidth": 0.8}
    colors = np.where(few, "white", PALE_BLUE), np.where(few, BLUE, "white")
    panel.bar(known["low"], known["accuracy"], widths, color=colors[0], edgecolor=colors[1], **style)
    gap = known["confidence"] - known["accuracy"]
    panel.bar(
        known["low"],
        gap.abs(),
        widths,
        bottom=np.minimum(known["accuracy"], known["confidence"]),
        align="edge",
        facecolor="none",
        edgecolor=CONFIDENCE,
        hatch=["" if is_few else "////" for is_few in few],
        linewidth=0.8,
        label="gap between accuracy and mean confidence",
    )
    low, high = wilson_interval(known["accuracy"].to_numpy(), known["images"].to_numpy())
    panel.vlines(known["low"] + widths / 2, low, high, color="black", linewidth=1.2)
    panel.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="well calibrated")
    panel.set(ylabel="accuracy", ylim=(0, 1))
    panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=9, borderaxespad=0.3)


def _draw_histogram(panel: Axes, bins: pd.DataFrame, means: Mapping[str, tuple[float, str, str]]) -> None:
    """Draw the share of images in each bin with their number above, and means as vertical lines.

    Args:
        panel: Where to draw.
        bins: See `metrics.reliability_table`.
        means: (value, colour, line style) by name.
    """
    share = bins["images"] / bins["images"].sum()
    bars = panel.bar(bins["low"], share, _widths(bins), align="edge", color="0.8", edgecolor="white", linewidth=0.5)
    numbers = [f"{images:,}" if images else "" for images in bins["images"]]
    panel.bar_label(bars, numbers, fontsize=7, padding=1)
    for name, (at, color, style) in means.items():
        panel.axvline(at, ymax=0.7, color=color, linestyle=style, linewidth=1.5, label=f"{name} {percent(at)}")
    panel.set(xlabel="confidence: the highest of an image's probabilities", ylabel="share of images", xlim=(0, 1))
    top = share.max()
    # room for the numbers and the legend
    panel.set_ylim(0, 1.5 * top)
    panel.set_yticks([tick for tick in MaxNLocator(3).tick_values(0, top) if tick <= top])
    panel.legend(loc="upper left", ncols=2, frameon=False, fontsize=9, borderaxespad=0.2)


def _widths(bins: pd.DataFrame) -> pd.Series:
    return bins["high"] - bins["low"]
