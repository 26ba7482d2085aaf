"""Figures of a training run: arrays in, matplotlib Figure out; no files, no pyplot, no state."""

from collections.abc import Mapping, Sequence
from math import ceil, sqrt

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

from pipeline.config.monitor import OF_CLASSES, Monitor, metric_words
from pipeline.evaluation.figures.image_grid import class_and_probability, image_grid
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
    finite_or_nan,
    strip_frame,
    text_figure,
    text_width,
    titled,
)
from pipeline.evaluation.figures.value_scale import value_scale
from pipeline.runtime.text import count, percent

FILTERS_OVER_EPOCHS = 10  # rows: as many as can be distinguished at a glance
TRAINING = VERMILLION
VALIDATION = BLUE


@default_style()
def curves(
    history: Mapping[str, Sequence[float]], *, best_epoch: int, monitor: Monitor = "val_accuracy", subject: str = ""
) -> Figure:
    """Draw loss, accuracy and learning rate over the epochs, with the best epoch marked.

    A loss that spans more than a factor of 20 is drawn on a log scale, accuracies close to 100 % on one of the error.

    Args:
        history: One value an epoch, from epoch 1 on, under loss, accuracy, val_loss, val_accuracy (accuracies are
            fractions) and learning_rate; those of validation may be left out. Values that are not finite leave a gap.
        best_epoch: Number of the epoch to mark, counted from 1; of a training without validation it is not marked.
        monitor: The metric by which it is the best; one that counts classes alike is drawn beside the accuracies.
        subject: Of which data and run, for the title.

    Raises:
        ValueError: `best_epoch` is not an epoch of the history.
    """
    names = dict.fromkeys(("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", monitor))
    columns = {name: finite_or_nan(history[name]) for name in names if name in history}
    has_validation = "val_loss" in columns
    epochs = len(columns["loss"])
    if not 1 <= best_epoch <= epochs:
        raise ValueError(f"best_epoch must be an epoch of the history, 1 to {epochs}, got {best_epoch}")
    best = {name: values[best_epoch - 1] for name, values in columns.items()}
    if has_validation:
        first = f"{metric_words(monitor)} {percent(best[monitor])}, " if monitor in OF_CLASSES else ""
        note = (
            f"best epoch {best_epoch} of {epochs}: {first}validation accuracy {percent(best['val_accuracy'])}, "
            f"validation loss {best['val_loss']:.3g}"
        )
    else:
        note = f"without validation images: the weights are those after the last of {count(epochs, 'epoch')}"

    figure = Figure(figsize=(8, 7.5), dpi=DPI)
    draw_title(
        figure,
        titled("Training curves", subject),
        note,
    )
    figure.subplots_adjust(left=0.13, right=0.97, bottom=0.08, top=0.88, hspace=0.08)
    loss, accuracy, learning_rate = figure.subplots(3, 1, sharex=True, height_ratios=(4, 4, 1))
    _draw_metric(loss, "loss", columns)
    _draw_metric(accuracy, "accuracy", columns, monitor if monitor in OF_CLASSES else None)
    _draw_learning_rate(learning_rate, columns["learning_rate"])
    marked = (loss, "val_loss"), (accuracy, monitor if monitor in OF_CLASSES else "val_accuracy")
    for panel, name in marked if has_validation else ():
        panel.plot(best_epoch, best[name], "o", ms=10, color=VALIDATION, markerfacecolor="none", clip_on=False)
    for panel in (loss, accuracy, learning_rate):
        if has_validation:
            panel.axvline(best_epoch, color=GREY, linewidth=1, linestyle=":", label=f"best epoch {best_epoch}")
        strip_frame(panel)
    learning_rate.set(xlabel="epoch", xlim=(0.5, epochs + 0.5))
    learning_rate.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    figure.align_ylabels([loss, accuracy, learning_rate])
    loss.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, borderaxespad=0)
    return figure


@default_style()
def patch_embeddings(kernels: NDArray[np.floating], *, subject: str = "") -> Figure:
    """Draw every filter of the patch convolution as a small image, in the colours to which it responds.

    Three channels are drawn as red, green and blue, a fourth as grey on their right; any other number of channels as
    that many grey squares side by side. Mid-grey is a weight of zero. After the figures of
    https://keras.io/examples/vision/convmixer/, where all filters share one scale.

    Args:
        kernels: (p, p, c, filters), as in Keras' Conv2D.
        subject: Of which data and run, for the title.
    """
    p, _, channels, filters = kernels.shape
    weights = _strongest_first(np.moveaxis(kernels, -1, 0))  # (filters, p, p, c), -1..1
    colored = [weights[..., :3]] if channels in (3, 4) else []
    greys = np.split(weights, channels, axis=-1)[3 * len(colored) :]
    squares = [np.broadcast_to(square, (filters, p, p, 3)) for square in colored + greys]
    # 0.1..0.9: no weight is as white as the gaps
    board = 0.5 + 0.4 * _mosaic(np.concatenate(squares, axis=2))
    blank = np.isnan(board).any(axis=-1, keepdims=True)
    note = f"{count(filters, 'filter')} of {p} × {p} pixels, {count(channels, 'channel')}"
    if colored:
        note += " as red, green and blue" + (" (right: the 4th)" if channels == 4 else "") + "; mid-grey: zero"
    return _framed(
        np.concatenate([np.where(blank, 1, board), ~blank], axis=-1),  # (height, width, 4)
        titled("Patch embeddings", subject),
        note,
        weights,
        colors="gray",
        scale=Normalize(-1.25, 1.25),
        # a grey bar says nothing about colours
        has_key=not colored,
    )


@default_style()
def depthwise_kernels(kernels: NDArray[np.floating], *, block: int, subject: str = "") -> Figure:
    """Draw every kernel of one block's depthwise convolution, positive weights in red and negative ones in blue.

    After the figures of https://keras.io/examples/vision/convmixer/, in which zero has no colour of its own.

    Args:
        kernels: (k, k, filters, 1), as in Keras' DepthwiseConv2D.
        block: Number of the block, for the title.
        subject: Of which data and run, for the title.
    """
    k, _, filters, _ = kernels.shape
    weights = _strongest_first(np.moveaxis(kernels[..., 0], -1, 0))  # (filters, k, k), -1..1
    return _framed(
        _mosaic(weights),
        titled(f"Depthwise kernels of block {block}", subject),
        f"{count(filters, 'filter')} of {k} × {k}",
        weights,
        # its zero is grey, unlike a blank
        colors="coolwarm",
        scale=Normalize(-1, 1),
    )


@default_style()
def filters_over_epochs(kernels: Mapping[int, NDArray[np.floating]], *, block: int, subject: str = "") -> Figure:
    """Draw the kernels of one block over the training, a row a kernel and a column an epoch.

    The kernels are those that are largest in the last epoch. Each has one scale for all epochs, so that a weight that
    grows is seen to grow.

    Args:
        kernels: (k, k, filters, 1) by epoch; 0 is before training.
        block: Number of the block, for the title.
        subject: Of which data and run, for the title.
    """
    epochs = sorted(kernels)
    weights = finite_or_nan(np.stack([kernels[epoch][..., 0] for epoch in epochs]))  # (epochs, k, k, filters)
    last = np.nan_to_num(np.abs(weights[-1])).max(axis=(0, 1))
    chosen = np.argsort(-last, kind="stable")[:FILTERS_OVER_EPOCHS]
    cell = 0.62  # inches
    width, height = max(cell * len(epochs) + 1, 6.4), cell * len(chosen) + 1.5
    figure = Figure(figsize=(width, height), dpi=DPI)
    draw_title(
        figure,
        titled(f"Depthwise kernels of block {block} over the epochs", subject),
        f"the {len(chosen)} of {weights.shape[-1]} that are largest at the end, each row on its own scale",
        "red: positive, blue: negative" + (", epoch 0: before training" if 0 in epochs else ""),
    )
    left = (width - cell * len(epochs)) / 2
    for row, kernel in enumerate(chosen):
        largest = np.nanmax(np.abs(np.nan_to_num(weights[..., kernel]))) or 1.0
        for column, epoch in enumerate(epochs):
            place = left + cell * column, cell * (len(chosen) - 1 - row) + 0.6
            axes = axes_at(figure, *place, 0.92 * cell, 0.92 * cell)
            scale = Normalize(-largest, largest)
            axes.imshow(weights[column, :, :, kernel], cmap="coolwarm", norm=scale, interpolation="none")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if row == len(chosen) - 1:
                axes.set_xlabel(str(epoch), fontsize=9)
    figure.text(0.5, 0.14 / height, "epoch", ha="center", fontsize=9)
    return figure


@default_style()
def confusion_matrix(counts: NDArray[np.integer], *, classes: Sequence[str], subject: str = "") -> Figure:
    """Draw how many images of each true class (rows) were predicted as each class (columns).

    Colour is the share of the row, on a square-root scale so that a confusion of 1 % shows. Counts other than 0 are
    written into their cells if they can be read there, unless there are more than 600.

    Args:
        counts: (classes, classes).
        classes: Names of the classes.
        subject: Of which data, split and run, for the title.
    """
    side = min(6 * (len(classes) / 10) ** 0.35, 12)  # inches: 3.4 for 2 classes, 6 for 10, 12 for 100
    cell = side / len(classes)
    totals = counts.sum(axis=1, keepdims=True)
    # a class without images is a row of zeros
    share = counts / np.maximum(totals, 1)
    correct, images = int(np.trace(counts)), int(counts.sum())

    size = min(10, 0.72 * 72 * cell)  # points
    names = [ellipsize(name, 2, size) for name in classes]
    longest = max(text_width(name, size) for name in names)
    upright = longest > 0.95 * cell
    names_width, names_height = longest + 0.5, (longest if upright else size / 72) + 0.5  # inches
    width, height = max(names_width + side + 1.2, 6.4), names_height + side + 0.75
    left = (width - 1.2 - side + names_width) / 2
    figure = Figure(figsize=(width, height), dpi=DPI)
    draw_title(
        figure,
        titled("Confusion matrix", subject),
        f"{count(images, 'image')} of {len(classes)} classes: {correct:,} correct "
        f"({percent(correct / max(images, 1))}), {images - correct:,} wrong",
    )
    axes = axes_at(figure, left, names_height, side, side)
    picture = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="none")
    axes.tick_params(bottom=False, left=False)
    axes.set_xticks(range(len(classes)), names, fontsize=size, rotation=90 if upright else 0, parse_math=False)
    axes.set_yticks(range(len(classes)), names, fontsize=size, parse_math=False)
    axes.set(xlabel="predicted class", ylabel="true class")
    _write_counts(axes, counts, share, cell)
    key = axes_at(figure, left + side + 0.15, names_height, 0.15, side)
    bar = figure.colorbar(picture, cax=key, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], format=PercentFormatter(1, symbol=" %"))
    bar.set_label("share of the true class")
    return figure


@default_style()
def mistakes(
    images: NDArray[np.uint8],
    *,
    true: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float],
    wrong: int,
    of: int,
    files: Sequence[str] = (),
    subject: str = "",
) -> Figure:
    """Draw misclassified images, with predicted class and confidence above, true class and name of the file below.

    Args:
        images: (n, h, w, c) of 1, 3 or 4 channels, the most confident errors; n may be 0.
        true: (n,) names of the true classes.
        predicted: (n,) names of the predicted classes.
        confidence: (n,) from 0 to 1.
        wrong: Number of all misclassified images.
        of: Number of all images.
        files: (n,) paths of their files, empty where there are none.
        subject: Of which data, split and run, for the title.

    Raises:
        ValueError: The lengths differ.
    """
    lengths = [len(images), len(true), len(predicted), len(confidence)]
    if len(set(lengths)) > 1:
        raise ValueError(f"images, true, predicted and confidence must be equally long, got {lengths}")
    number, height, width = images.shape[:3]
    if not number:
        return text_figure(f"none in {count(of, 'image')}", title=titled("Mistakes", subject))

    which = f"the {number:,} most confident of {count(wrong, 'mistake')}"
    if number == wrong:
        which = "the only mistake" if wrong == 1 else f"all {wrong} mistakes"
    below = "true class, file" if any(files) else "true class"
    return image_grid(
        images,
        above=[class_and_probability(*one) for one in zip(predicted, confidence, strict=True)],
        below=true,
        files=files,
        title=titled("Mistakes", subject),
        notes=[
            f"{which} in {count(of, 'image')} of {height} × {width} pixels",
            f"above: predicted class, confidence; below: {below}",
        ],
    )


def _draw_metric(panel: Axes, name: str, columns: Mapping[str, NDArray], further: Monitor | None = None) -> None:
    """Draw the training and validation line of one metric; few epochs get dots, as a single epoch has no line.

    A further metric of validation is dashed, and named in the panel.
    """
    epochs = range(1, len(columns[name]) + 1)
    dots = "o" if len(epochs) <= 30 else ""
    lines = {name: (TRAINING, "training"), f"val_{name}": (VALIDATION, "validation")}
    shown = [column for column in lines if column in columns]
    for column in shown:
        color, label = lines[column]
        panel.plot(epochs, columns[column], color=color, marker=dots, markersize=4, label=label)
    if further is not None and further in columns:
        panel.plot(
            epochs, columns[further], "--", color=VALIDATION, marker=dots, markersize=4, label=metric_words(further)
        )
        # the others are named above the loss
        panel.legend(handles=panel.lines[-1:], loc="lower right", frameon=False)
        shown.append(further)
    values = np.concatenate([columns[column] for column in shown])
    scale = value_scale(values, is_accuracy=name == "accuracy", falls=name == "loss")
    scale.apply(panel, values)
    panel.set_ylabel(name + scale.note)


def _draw_learning_rate(panel: Axes, rates: NDArray) -> None:
    epochs = range(1, len(rates) + 1)
    panel.plot(epochs, rates, color=GREY, linewidth=1, marker="." if len(epochs) <= 30 else "")
    highest = max(rates[np.isfinite(rates)], default=0.0)
    if highest > 0:
        panel.set_ylim(0, 1.15 * highest)
        panel.yaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.set_ylabel("learning rate\n(epoch's end)", color=GREY, fontsize=8)
    panel.tick_params(axis="y", labelcolor=GREY)


def _strongest_first(filters: NDArray) -> NDArray:
    """Return filters (filters, ...) scaled to -1..1, each by its own largest weight, in the order of that weight.

    Weight decay shrinks the filters that the network does not use. They come last, and below 5 % of the strongest one
    they fade instead of showing their noise. Weights that are not finite become NaN.
    """
    weights = finite_or_nan(filters)
    largest = np.nan_to_num(np.abs(weights)).reshape(len(weights), -1).max(axis=1)
    order = np.argsort(-largest, kind="stable")
    scale = np.maximum(largest, 0.05 * largest.max()) if largest.any() else np.ones_like(largest)
    return (weights / scale.reshape(-1, *[1] * (weights.ndim - 1)))[order]


def _mosaic(tiles: NDArray) -> NDArray:
    """Arrange tiles (n, h, w, ...) in ceil(sqrt(n)) columns: one image (height, width, ...) with NaN between them."""
    number, height = tiles.shape[:2]
    # enlarged, so that a gap of one pixel is narrow
    tiles = tiles.repeat(ceil(8 / height), axis=1).repeat(ceil(8 / height), axis=2)
    columns = ceil(sqrt(number))
    rows = ceil(number / columns)
    height, width, *rest = tiles.shape[1:]
    cells = np.full((rows * columns, height + 1, width + 1, *rest), np.nan)
    cells[:number, :height, :width] = tiles
    cells = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)  # (rows, h + 1, columns, w + 1, ...)
    return cells.reshape(rows * (height + 1), columns * (width + 1), *rest)[:-1, :-1]


def _framed(
    board: NDArray, title: str, note: str, weights: NDArray, *, colors: str, scale: Normalize, has_key: bool = True
) -> Figure:
    """Draw a mosaic of `weights` with its key; a cell is a whole number of pixels, so that equal weights look equal."""
    # 200 pixels a filter, 1400 pixels in all
    zoom = max(1, min(1400 // max(board.shape[:2]), 200 * ceil(sqrt(len(weights))) // board.shape[1]))
    height, width = (zoom * pixels / DPI for pixels in board.shape[:2])  # inches
    figure_width = max(width + 0.4, 6.4)
    figure = Figure(figsize=(figure_width, height + 1.4), dpi=DPI)
    broken = int(np.isnan(weights).reshape(len(weights), -1).any(axis=1).sum())
    draw_title(
        figure,
        title,
        note,
        "each on its own scale, largest weight first; below 5 % of the first they fade",
        f"blank: not finite, in {count(broken, 'filter')}" if broken else "",
    )
    axes = axes_at(figure, (figure_width - width) / 2, 0.6, width, height)
    axes.imshow(board, cmap=colors, norm=scale, interpolation="none")
    axes.set_axis_off()
    if not has_key:
        return figure
    key = axes_at(figure, figure_width / 2 - 1, 0.36, 2, 0.12)
    bar = figure.colorbar(ScalarMappable(scale, colors), cax=key, orientation="horizontal")
    bar.set_ticks([-1, 0, 1], labels=["most negative", "0", "most positive"], fontsize=8)
    key.set_xlim(-1, 1)
    return figure


def _write_counts(axes: Axes, counts: NDArray, share: NDArray, cell: float) -> None:
    """Write the counts into cells of `cell` inches, if they can be read there."""
    size = min(10, 0.6 * 72 * cell, 0.9 * cell / text_width(str(counts.max()), 1))  # points
    # A text takes a millisecond to draw.
    if size < 5 or np.count_nonzero(counts) > 600:
        return
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if share[row, column] > 0.35 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=color)
