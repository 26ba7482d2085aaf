"""Pictures of a run: arrays in, matplotlib Figure out; no files, no pyplot, no state."""

from collections.abc import Mapping, Sequence
from math import ceil, sqrt

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

from pipeline.evaluation.figures.style import (
    BLUE,
    DPI,
    GREY,
    VERMILLION,
    axes_at,
    draw_title,
    ellipsize,
    finite_or_nan,
    text_figure,
    text_width,
)
from pipeline.runtime.text import count, percent

FILTERS_OVER_EPOCHS = 10  # rows: as many as are told apart at a glance
TRAINING = PREDICTED = VERMILLION
VALIDATION = TRUE = BLUE


def curves(history: Mapping[str, Sequence[float]], *, best_epoch: int) -> Figure:
    """Loss, accuracy and learning rate over the epochs, best epoch marked.

    `history` has one value an epoch, the first being epoch 1, under loss, accuracy, val_loss, val_accuracy (accuracies
    are fractions) and learning_rate; values that are not finite leave a gap. A loss that spans more than a factor of 20
    gets a log scale. Raises ValueError if `best_epoch` is not an epoch of the history.
    """
    columns = {
        name: finite_or_nan(history[name]) for name in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")
    }
    epochs = len(columns["loss"])
    if not 1 <= best_epoch <= epochs:
        raise ValueError(f"best_epoch must be an epoch of the history, 1 to {epochs}: got {best_epoch}")
    best = {name: values[best_epoch - 1] for name, values in columns.items()}

    figure = Figure(figsize=(8, 7.5), dpi=DPI, layout="constrained")
    figure.suptitle(
        f"Training curves: {count(epochs, 'epoch')}\nbest epoch {best_epoch}: "
        f"validation accuracy {percent(best['val_accuracy'])}, validation loss {best['val_loss']:.3g}",
        fontsize=11,
    )
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=(4, 4, 1))
    _pair(loss, "loss", columns)
    _pair(accuracy, "accuracy", columns)
    _rate(rate, columns["learning_rate"])
    if _spans_decades(columns["loss"], columns["val_loss"]):
        _log_scale(loss)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    for panel, name in ((loss, "val_loss"), (accuracy, "val_accuracy")):
        panel.plot(best_epoch, best[name], "o", ms=10, color=VALIDATION, markerfacecolor="none", clip_on=False)
    for panel in (loss, accuracy, rate):
        panel.axvline(best_epoch, color=GREY, linewidth=1, linestyle=":", label=f"best epoch {best_epoch}")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="0.9")
        panel.set_axisbelow(True)
    rate.set(xlabel="epoch", xlim=(0.5, epochs + 0.5))
    rate.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    figure.align_ylabels([loss, accuracy])
    loss.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, borderaxespad=0)
    return figure


def patch_embeddings(kernels: NDArray[np.floating]) -> Figure:
    """Every filter of the patch convolution as a small picture, in the colours it answers to.

    `kernels` is (p, p, c, filters), as Keras' Conv2D holds it. Three channels are drawn as red, green and blue, a
    fourth as grey on their right; any other number of channels as that many grey squares side by side. Mid-grey is a
    weight of zero. After the figures of https://keras.io/examples/vision/convmixer/, where all filters share one scale.
    """
    p, _, channels, filters = kernels.shape
    weights = _strongest_first(np.moveaxis(kernels, -1, 0))  # (filters, p, p, c), -1..1
    colours = [weights[..., :3]] if channels in (3, 4) else []
    greys = np.split(weights, channels, axis=-1)[3 * len(colours) :]
    squares = [np.broadcast_to(square, (filters, p, p, 3)) for square in colours + greys]
    board = 0.5 + 0.4 * _mosaic(np.concatenate(squares, axis=2))  # 0.1..0.9: no weight is as white as a gap
    blank = np.isnan(board).any(axis=-1, keepdims=True)
    title = f"Patch embeddings: {count(filters, 'filter')} of {p} × {p} pixels, {count(channels, 'channel')}"
    return _framed(
        np.concatenate([np.where(blank, 1, board), ~blank], axis=-1),  # (height, width, 4)
        title + (" (right: the 4th)" if channels == 4 else ""),
        weights,
        colours="gray",
        scale=Normalize(-1.25, 1.25),
    )


def depthwise_kernels(kernels: NDArray[np.floating], *, block: int) -> Figure:
    """Every kernel of one block's depthwise convolution: red where a weight is positive, blue where it is negative.

    `kernels` is (k, k, filters, 1), as Keras' DepthwiseConv2D holds it; `block` is the block's number, for the title.
    After the figures of https://keras.io/examples/vision/convmixer/, which have no zero.
    """
    k, _, filters, _ = kernels.shape
    weights = _strongest_first(np.moveaxis(kernels[..., 0], -1, 0))  # (filters, k, k), -1..1
    return _framed(
        _mosaic(weights),
        f"Depthwise kernels of block {block}: {count(filters, 'filter')} of {k} × {k}",
        weights,
        colours="coolwarm",  # zero is grey: told from a blank
        scale=Normalize(-1, 1),
    )


def filters_over_epochs(kernels: Mapping[int, NDArray[np.floating]], *, block: int) -> Figure:
    """The same kernels of one block at several epochs: a row a kernel, a column an epoch.

    `kernels` holds (k, k, filters, 1) by epoch. Drawn are the kernels that are largest at the end, each on one scale
    from its first epoch to its last, so that a weight which grows is seen to grow.
    """
    epochs = sorted(kernels)
    weights = finite_or_nan(np.stack([kernels[epoch][..., 0] for epoch in epochs]))  # (epochs, k, k, filters)
    last = np.nan_to_num(np.abs(weights[-1])).max(axis=(0, 1))
    chosen = np.argsort(-last, kind="stable")[:FILTERS_OVER_EPOCHS]
    cell, beside = 0.62, 0.7  # inches
    across, down = max(beside + cell * len(epochs) + 0.3, 6.4), cell * len(chosen) + 1.5
    figure = Figure(figsize=(across, down), dpi=DPI)
    draw_title(
        figure,
        f"Depthwise kernels of block {block} at {count(len(epochs), 'epoch')}",
        f"the {len(chosen)} of {weights.shape[-1]} that are largest at the end, each row on its own scale",
    )
    left = (across - cell * len(epochs)) / 2
    for row, kernel in enumerate(chosen):
        largest = np.nanmax(np.abs(np.nan_to_num(weights[..., kernel]))) or 1.0
        for column, epoch in enumerate(epochs):
            place = left + cell * column, cell * (len(chosen) - 1 - row) + 0.6
            axes = axes_at(figure, *place, 0.92 * cell, 0.92 * cell)
            scale = Normalize(-largest, largest)
            axes.imshow(weights[column, :, :, kernel], cmap="coolwarm", norm=scale, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if row == len(chosen) - 1:
                axes.set_xlabel(str(epoch), fontsize=9)
    figure.text(0.5, 0.14 / down, "epoch", ha="center", fontsize=9)
    return figure


def confusion_matrix(counts: NDArray[np.integer], *, classes: Sequence[str]) -> Figure:
    """How many images of each true class (rows) were taken for each class (columns).

    `counts` is (classes, classes). Colour is the share of the row, on a square-root scale so that a confusion of 1 %
    shows; counts other than 0 are written into their cells where they can be read, unless there are more than 600.
    """
    side = min(6 * (len(classes) / 10) ** 0.35, 12)  # inches: 3.4 for 2 classes, 6 for 10, 12 for 100
    cell = side / len(classes)
    totals = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(totals, 1)  # a class without images is a row of zeros
    right, images = int(np.trace(counts)), int(counts.sum())

    size = min(10, 0.72 * 72 * cell)  # points
    names = [ellipsize(name, 2, size) for name in classes]
    longest = max(text_width(name, size) for name in names)
    upright = longest > 0.95 * cell
    beside, below = longest + 0.5, (longest if upright else size / 72) + 0.5  # inches for the names
    across, down = max(beside + side + 1.2, 6.4), below + side + 0.75
    left = (across - 1.2 - side + beside) / 2
    figure = Figure(figsize=(across, down), dpi=DPI)
    draw_title(
        figure,
        f"Confusion matrix: {count(images, 'image')}, {len(classes)} classes",
        f"{right:,} right ({percent(right / max(images, 1))}), {images - right:,} wrong",
    )
    axes = axes_at(figure, left, below, side, side)
    picture = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.tick_params(bottom=False, left=False)
    axes.set_xticks(range(len(classes)), names, fontsize=size, rotation=90 if upright else 0, parse_math=False)
    axes.set_yticks(range(len(classes)), names, fontsize=size, parse_math=False)
    axes.set(xlabel="predicted class", ylabel="true class")
    _write_counts(axes, counts, share, cell)
    key = axes_at(figure, left + side + 0.15, below, 0.15, side)
    bar = figure.colorbar(picture, cax=key, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], format=PercentFormatter(1, symbol=" %"))
    bar.set_label("share of the true class")
    return figure


def mistakes(
    images: NDArray[np.uint8],
    *,
    true: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float],
    wrong: int,
    of: int,
) -> Figure:
    """Images in the order given, the predicted class and its confidence (0 to 1) above, the true class below.

    `images` is (n, h, w, c) of 1, 3 or 4 channels, the most confident of the `wrong` ones among `of`; n may be 0.
    Raises ValueError if the lengths differ.
    """
    lengths = [len(images), len(true), len(predicted), len(confidence)]
    if len(set(lengths)) > 1:
        raise ValueError(f"images, true, predicted and confidence must be equally long: got {lengths}")
    number, height, width = images.shape[:3]
    if not number:
        return text_figure(f"No mistakes in {count(of, 'image')}")

    columns = ceil(sqrt(number))
    rows = ceil(number / columns)
    tall = 1.6 * min(max(height / width, 0.25), 4)  # inches
    across, down = max(1.8 * columns, 6.4), (tall + 0.5) * rows + 0.7
    figure = Figure(figsize=(across, down), dpi=DPI)
    figure.subplots_adjust(
        left=0.1 / across, right=1 - 0.1 / across, bottom=0.3 / down, top=1 - 0.9 / down, wspace=0.1, hspace=0.5 / tall
    )
    draw_title(
        figure,
        f"The {number:,} most confident of {count(wrong, 'mistake')} in {count(of, 'image')}"
        if number < wrong
        else f"{'The only mistake' if wrong == 1 else f'All {wrong} mistakes'} in {count(of, 'image')}",
        f"{height} × {width} pixels; above: predicted class and its confidence; below: true class",
    )
    grid = iter(figure.subplots(rows, columns, squeeze=False).flat)
    for image, is_, said, sure in zip(images, true, predicted, confidence, strict=True):
        axes = next(grid)
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="auto")  # auto: nearest where enlarged
        above = f"{ellipsize(said, 1.2, 8.5)} ({100 * sure:.0f} %)"
        axes.set_title(above, fontsize=8.5, color=PREDICTED, pad=3, parse_math=False)
        axes.set_xlabel(ellipsize(is_, 1.6, 8.5), fontsize=8.5, color=TRUE, labelpad=3, parse_math=False)
        axes.set(xticks=[], yticks=[], facecolor="0.85")  # grey shows through transparent pixels
    for unused in grid:
        unused.set_axis_off()
    return figure


def _pair(panel: Axes, name: str, columns: Mapping[str, NDArray]) -> None:
    """Training and validation line of one quantity; few epochs get dots, as one epoch alone has no line."""
    epochs = range(1, len(columns[name]) + 1)
    dots = "o" if len(epochs) <= 30 else ""
    panel.plot(epochs, columns[name], color=TRAINING, marker=dots, markersize=4, label="training")
    panel.plot(epochs, columns[f"val_{name}"], color=VALIDATION, marker=dots, markersize=4, label="validation")
    panel.set_ylabel(name)


def _spans_decades(*losses: NDArray) -> bool:
    values = np.concatenate(losses)
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() > 20 * values.min())


def _log_scale(panel: Axes) -> None:
    panel.set_yscale("log")
    panel.set_ylabel("loss (log scale)")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _rate(panel: Axes, rates: NDArray) -> None:
    epochs = range(1, len(rates) + 1)
    panel.plot(epochs, rates, color=GREY, linewidth=1, marker="." if len(epochs) <= 30 else "")
    highest = max(rates[np.isfinite(rates)], default=0.0)
    if highest > 0:
        panel.set_ylim(0, 1.15 * highest)
        panel.set_yticks([0, highest], labels=["0", f"{highest:.3g}"])
    panel.set_ylabel("learning\nrate", color=GREY)
    panel.tick_params(axis="y", labelcolor=GREY)


def _strongest_first(filters: NDArray) -> NDArray:
    """(filters, ...) scaled to -1..1, each by its own largest weight, in the order of that weight.

    Weight decay shrinks what the network does not use: such filters come last, and below 5 % of the strongest they fade
    rather than show their noise. Weights that are not finite become NaN.
    """
    weights = finite_or_nan(filters)
    largest = np.nan_to_num(np.abs(weights)).reshape(len(weights), -1).max(axis=1)
    order = np.argsort(-largest, kind="stable")
    scale = np.maximum(largest, 0.05 * largest.max()) if largest.any() else np.ones_like(largest)
    return (weights / scale.reshape(-1, *[1] * (weights.ndim - 1)))[order]


def _mosaic(tiles: NDArray) -> NDArray:
    """(n, h, w, ...) -> one picture (height, width, ...) of ceil(sqrt(n)) columns with NaN between the tiles."""
    number, height = tiles.shape[:2]
    tiles = tiles.repeat(ceil(8 / height), axis=1).repeat(ceil(8 / height), axis=2)  # so that the gap of 1 stays narrow
    columns = ceil(sqrt(number))
    rows = ceil(number / columns)
    height, width, *rest = tiles.shape[1:]
    cells = np.full((rows * columns, height + 1, width + 1, *rest), np.nan)
    cells[:number, :height, :width] = tiles
    cells = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)  # (rows, h + 1, columns, w + 1, ...)
    return cells.reshape(rows * (height + 1), columns * (width + 1), *rest)[:-1, :-1]


def _framed(board: NDArray, title: str, weights: NDArray, *, colours: str, scale: Normalize) -> Figure:
    """A mosaic of `weights` with its key; a cell is a whole number of pixels, so that equal weights get equal areas."""
    height, width = board.shape[:2]
    roomy = 200 * ceil(sqrt(len(weights))) // width  # 200 pixels a filter
    zoom = max(1, min(1400 // max(height, width), roomy))
    wide, high = zoom * width / DPI, zoom * height / DPI  # inches
    across, down = max(wide + 0.4, 6.4), high + 1.4
    figure = Figure(figsize=(across, down), dpi=DPI)
    broken = int(np.isnan(weights).reshape(len(weights), -1).any(axis=1).sum())
    draw_title(
        figure,
        title,
        "each on its own scale, largest weight first; below 5 % of the first they fade",
        f"blank: not finite, in {count(broken, 'filter')}" if broken else "",
    )
    axes = axes_at(figure, (across - wide) / 2, 0.6, wide, high)
    axes.imshow(board, cmap=colours, norm=scale, interpolation="nearest")
    axes.set_axis_off()
    key = axes_at(figure, across / 2 - 1, 0.36, 2, 0.12)
    bar = figure.colorbar(ScalarMappable(scale, colours), cax=key, orientation="horizontal")
    bar.set_ticks([-1, 0, 1], labels=["most negative", "0", "most positive"], fontsize=8)
    key.set_xlim(-1, 1)
    return figure


def _write_counts(axes: Axes, counts: NDArray, share: NDArray, cell: float) -> None:
    """Counts in cells of `cell` inches, where they can be read."""
    size = min(10, 0.6 * 72 * cell, 0.9 * cell / text_width(str(counts.max()), 1))  # points
    if size < 5 or np.count_nonzero(counts) > 600:  # a text takes a millisecond to draw
        return
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if share[row, column] > 0.35 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=colour)
