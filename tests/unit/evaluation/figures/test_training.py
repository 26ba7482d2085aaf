"""The figures of a training run."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.evaluation.figures import training
from tests.support.figures import margins, render, title

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COUNTS = {"wrong": 7, "of": 180}


def history(epochs: int) -> dict[str, list[float]]:
    rising = np.linspace(0.1, 0.8, epochs)
    return {
        "loss": list(2 - rising),
        "accuracy": list(rising),
        "val_loss": list(2.1 - rising),
        "val_accuracy": list(rising - 0.05),
        "learning_rate": [1e-3] * epochs,
    }


def random(*shape: int) -> NDArray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def drawn_array(figure: Figure) -> NDArray:
    """Return the array that the figure's first image draws, NaN where it is blank."""
    return np.ma.filled(np.asanyarray(figure.axes[0].images[0].get_array()), np.nan)


def cells(board: NDArray, columns: int) -> NDArray:
    """Cut a mosaic at its gaps: (rows * columns, height, width, ...)."""
    rows = round(columns * board.shape[0] / board.shape[1])
    height, width = (board.shape[0] + 1) // rows, (board.shape[1] + 1) // columns
    return np.stack(
        [
            board[y * height : (y + 1) * height - 1, x * width : (x + 1) * width - 1]
            for y in range(rows)
            for x in range(columns)
        ]
    )


# Curves


def test_curves_mark_the_best_epoch_in_every_panel_counted_from_1() -> None:
    figure = training.curves(history(10), best_epoch=7)
    dotted = [[line for line in axes.lines if line.get_label() == "best epoch 7"] for axes in figure.axes]
    assert [lines[0].get_xdata() for lines in dotted] == [[7, 7]] * 3
    rings = [line for axes in figure.axes[:2] for line in axes.lines if line.get_markersize() == 10]
    assert [np.asarray(ring.get_xydata()).tolist() for ring in rings] == [
        [[7, history(10)["val_loss"][6]]],
        [[7, history(10)["val_accuracy"][6]]],
    ]
    assert f"best epoch 7 of 10: validation accuracy {100 * history(10)['val_accuracy'][6]:.1f} %" in title(figure)


def test_curves_draw_a_monitored_metric_of_classes_beside_the_accuracies_and_mark_its_best_epoch() -> None:
    values = [0.0, 0.3, 0.2]
    figure = training.curves(history(3) | {"val_macro_f1": values}, best_epoch=2, monitor="val_macro_f1")
    _, accuracy, _ = figure.axes
    (line,) = [line for line in accuracy.lines if line.get_label() == "validation macro F1"]
    assert np.asarray(line.get_ydata()).tolist() == values and accuracy.get_ylim()[0] <= 0
    assert [[2, 0.3]] in [np.asarray(ring.get_xydata()).tolist() for ring in accuracy.lines]
    assert "best epoch 2 of 3: validation macro F1 30.0 %, validation accuracy" in title(figure)


def test_curves_draw_the_columns_of_each_panel() -> None:
    columns = history(5)
    shown = {
        (axes.get_ylabel().replace("\n", " "), line.get_label()): np.asarray(line.get_ydata()).tolist()
        for axes in training.curves(columns, best_epoch=1).axes
        for line in axes.lines
    }
    assert shown["loss", "training"] == columns["loss"]
    assert shown["loss", "validation"] == columns["val_loss"]
    assert shown["accuracy", "training"] == columns["accuracy"]
    assert shown["accuracy", "validation"] == columns["val_accuracy"]
    assert columns["learning_rate"] in [
        value for (panel, _), value in shown.items() if panel.startswith("learning rate")
    ]


def test_curves_of_a_single_epoch_are_dots() -> None:
    lines = [line for axes in training.curves(history(1), best_epoch=1).axes[:2] for line in axes.lines]
    assert {line.get_marker() for line in lines if line.get_label() in {"training", "validation"}} == {"o"}


def test_curves_with_a_huge_first_loss_use_a_log_scale() -> None:
    columns = history(10)
    assert training.curves(columns, best_epoch=10).axes[0].get_yscale() == "linear"
    columns["val_loss"][0] = 100.0
    assert training.curves(columns, best_epoch=10).axes[0].get_yscale() == "log"


def test_curves_near_100_percent_tell_accuracies_apart_and_write_them_out() -> None:
    columns = history(10)
    columns["accuracy"], columns["val_accuracy"] = ([0.5, 0.9, *[value] * 8] for value in (0.9998, 0.9996))
    figure = training.curves(columns, best_epoch=10, subject="digits, run mine")
    assert "Training curves: digits, run mine" in title(figure)
    assert "validation accuracy 99.96 %" in title(figure)
    assert "log scale of the error" in figure.axes[1].get_ylabel()


def test_curves_draw_a_rate_at_its_value_between_round_ticks() -> None:
    columns = history(3) | {"learning_rate": [0.00996, 0.005, 0.0001]}
    panel = training.curves(columns, best_epoch=1).axes[2]
    render(panel.figure)  # type: ignore[arg-type]
    low, high = panel.get_ylim()
    shown = {label.get_text(): at for label, at in zip(panel.get_yticklabels(), panel.get_yticks(), strict=True)}
    assert {text for text, at in shown.items() if low <= at <= high} == {"0", "0.01"}
    assert shown["0.01"] == pytest.approx(0.01) and high > 0.01


@pytest.mark.parametrize("epoch", [0, 4])
def test_curves_with_a_best_epoch_outside_the_history_raise(epoch: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 3, got {epoch}"):
        training.curves(history(3), best_epoch=epoch)


# Filters


def test_mosaic_holds_every_filter_once_and_leaves_the_rest_blank() -> None:
    kernels = np.zeros((3, 3, 7, 1))
    for place in range(7):  # filter n has its only weight at place n
        kernels[place // 3, place % 3, place] = 1
    squares = cells(drawn_array(training.depthwise_kernels(kernels, block=0)), columns=3)
    centres = squares[:, 1::3, 1::3]  # one point of each weight, which is drawn 3 x 3
    assert [square.ravel().argmax() for square in centres[:7]] == list(range(7))
    assert (centres[:7].sum(axis=(1, 2)) == 1).all()
    assert np.isnan(squares[7:]).all()


def test_mosaic_separates_filters_by_blank_lines() -> None:
    board = drawn_array(training.depthwise_kernels(random(8, 8, 9, 1), block=0))
    assert board.shape == (26, 26)
    assert np.isnan(board[[8, 17]]).all()
    assert np.isnan(board[:, [8, 17]]).all()
    assert np.isnan(board).sum() == 26**2 - 24**2


def test_mosaic_colors_are_symmetric_around_zero() -> None:
    kernels = np.array([1.0, -1.0, 0.0]).reshape(1, 3, 1, 1).repeat(3, axis=0)
    image = training.depthwise_kernels(kernels, block=0).axes[0].images[0]
    positive, negative, zero = (image.to_rgba(np.array([[value]]))[0, 0, :3] for value in (1, -1, 0))
    assert positive[0] > positive[2]  # red
    assert negative[2] > negative[0]  # blue
    assert np.ptp(zero) < 0.01  # grey
    assert zero.max() < 0.9  # which is not the white of a blank
    assert np.asarray(image.norm(np.array([-1, 0, 1]))).tolist() == [0, 0.5, 1]


def test_mosaic_puts_weak_filters_last_and_fades_the_weakest() -> None:
    kernels = random(5, 5, 4, 1) * np.array([1e-6, 0.1, 1, 0])[:, None]
    squares = np.abs(cells(drawn_array(training.depthwise_kernels(kernels, block=0)), columns=2))
    assert squares.max(axis=(1, 2)) == pytest.approx([1, 1, 0, 0], abs=1e-3)


def test_patch_embeddings_of_three_channels_are_in_color() -> None:
    kernels = np.zeros((2, 2, 3, 2))
    kernels[:, :, 0, 0] = 2  # for red
    kernels[:, :, 2, 1] = -1  # against blue
    red, yellow = cells(drawn_array(training.patch_embeddings(kernels)), columns=2)
    assert np.unique(red.reshape(-1, 4), axis=0).tolist() == [[0.9, 0.5, 0.5, 1]]
    assert np.unique(yellow.reshape(-1, 4), axis=0) == pytest.approx(np.array([[0.5, 0.5, 0.1, 1]]))


@pytest.mark.parametrize(("channels", "squares"), [(1, 1), (2, 2), (3, 1), (4, 2), (5, 5)])
def test_patch_embeddings_draw_other_channels_as_grey_squares(channels: int, squares: int) -> None:
    board = drawn_array(training.patch_embeddings(random(8, 8, channels, 4)))
    assert board.shape == (2 * 9 - 1, 2 * (8 * squares + 1) - 1, 4)
    coloured = np.ptp(board[..., :3], axis=-1).any()
    assert coloured == (channels in (3, 4))
    figure = training.patch_embeddings(random(8, 8, channels, 4))
    assert len(figure.axes) == (1 if coloured else 2), "a grey bar explains no colours"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_mosaic_counts_a_filter_that_is_not_finite_and_keeps_the_others(value: float) -> None:
    kernels = random(4, 4, 3, 4)
    kernels[:, :, :, 3] = 1e-9
    sound = drawn_array(training.patch_embeddings(kernels))
    kernels[:, :, :, 3] = value
    figure = training.patch_embeddings(kernels)
    assert np.array_equal(cells(drawn_array(figure), 2)[:3], cells(sound, 2)[:3])
    assert not cells(drawn_array(figure), 2)[3, ..., 3].any()  # transparent
    assert "not finite, in 1 filter" in title(figure)


@pytest.mark.parametrize("filters", [4, 256, 1536])
def test_mosaic_cells_are_a_whole_number_of_pixels(filters: int) -> None:
    figure = training.depthwise_kernels(random(5, 5, filters, 1), block=4)
    area, board = figure.axes[0].get_window_extent(), drawn_array(figure)
    assert area.width / board.shape[1] == pytest.approx(round(area.width / board.shape[1]))
    assert area.height / board.shape[0] == pytest.approx(round(area.height / board.shape[0]))
    assert "block 4" in title(figure) and f"{filters:,} filters of 5 × 5" in title(figure)


def test_filters_over_epochs_draw_the_largest_last_kernels_on_one_scale_a_row() -> None:
    last = np.zeros((3, 3, 20, 1))
    last[1, 1, :, 0] = np.arange(20)
    figure = training.filters_over_epochs({1: last / 2, 10: last}, block=4)
    assert "block 4 over the epochs" in title(figure) and "the 10 of 20" in title(figure)
    centres = [np.asarray(axes.images[0].get_array())[1, 1] for axes in figure.axes]
    assert centres[:4] == [9.5, 19, 9, 18]
    assert {axes.images[0].norm.vmax for axes in figure.axes[:2]} == {19}
    assert [axes.get_xlabel() for axes in figure.axes[-2:]] == ["1", "10"]


# Confusion matrix


def test_confusion_matrix_writes_the_counts_with_true_classes_as_rows() -> None:
    counts = np.arange(100).reshape(10, 10)
    figure = training.confusion_matrix(counts, classes=CLASSES)
    written = np.zeros_like(counts)
    for text in figure.axes[0].texts:
        column, row = text.get_position()
        written[int(row), int(column)] = int(text.get_text())
    assert np.array_equal(written, counts)
    assert figure.axes[0].get_ylabel() == "true class"
    assert "4,950 images" in title(figure)
    assert "495 correct (10.0 %), 4,455 wrong" in title(figure)


def test_confusion_matrix_colors_are_shares_of_the_row() -> None:
    figure = training.confusion_matrix(np.array([[1, 3, 0], [0, 0, 0], [0, 0, 700]]), classes=["a", "b", "c"])
    assert drawn_array(figure).tolist() == [[0.25, 0.75, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("number", [2, 10, 100])
def test_confusion_matrix_names_every_class_on_both_axes_and_cuts_nothing_off(number: int) -> None:
    classes = [f"class number {index}" for index in range(number)]
    figure = training.confusion_matrix(np.eye(number, dtype=int), classes=classes)
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == classes
    assert min(margins(figure)) > 5


def test_confusion_matrix_leaves_out_counts_too_small_to_read() -> None:
    assert not training.confusion_matrix(12345 * np.eye(100, dtype=int), classes=["c"] * 100).axes[0].texts


@pytest.mark.parametrize("name", ["W" * 200, "i" * 200, "two\nlines", "$_^{$", "50 $ \\ & %"])
def test_figures_draw_any_class_name_without_cutting_it_off(name: str) -> None:
    counts = np.full((2, 2), 1_000_000)
    assert min(margins(training.confusion_matrix(counts, classes=[name, "b"]))) > 5
    image = np.zeros((1, 8, 8, 1), np.uint8)
    assert min(margins(training.mistakes(image, true=[name], predicted=[name], confidence=[1.0], **COUNTS))) > 5


def test_confusion_matrix_writes_code_points_for_characters_that_the_font_lacks() -> (
    None
):  # pytest makes a warning an error
    figure = training.confusion_matrix(np.eye(2, dtype=int), classes=["日本", "中国"])
    render(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["U+65E5 U+672C", "U+4E2D U+56FD"]


def test_confusion_matrix_shortens_a_long_name_in_its_middle() -> None:
    names = [f"a very very very very very long name that ends in {end}" for end in "xy"]
    axes = training.confusion_matrix(np.eye(2, dtype=int), classes=names).axes[0]
    x, y = (label.get_text() for label in axes.get_yticklabels())
    assert x.startswith("a very")
    assert (x[-4:], y[-4:]) == ("in x", "in y")


# Mistakes


def test_mistakes_have_prediction_and_confidence_above_and_the_true_class_below() -> None:
    images = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1)
    figure = training.mistakes(
        images, true=["cat", "dog"], predicted=["frog", "ship"], confidence=[0.987, 0.5], **COUNTS
    )
    assert [axes.get_title() for axes in figure.axes] == ["frog (98.7 %)", "ship (50.0 %)"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["cat", "dog"]
    assert np.array_equal([np.asarray(axes.images[0].get_array()) for axes in figure.axes], images[..., 0])
    assert "8 × 8 pixels" in title(figure)


def test_mistakes_name_the_files_below_and_cut_nothing_off() -> None:
    images = np.zeros((3, 8, 8, 1), np.uint8)
    files = ["test/cat/0007.png", "test/dog/" + "long " * 50 + "end.png", "test/dog/$_^{$.png"]
    figure = training.mistakes(
        images, true=["cat"] * 3, predicted=["dog"] * 3, confidence=[0.9] * 3, files=files, **COUNTS
    )
    shown = [axes.texts[0].get_text() for axes in figure.axes[:3]]
    assert (shown[0], shown[2]) == ("0007.png", "$_^{$.png")
    assert "…" in shown[1] and shown[1].endswith("end.png")
    assert "below: true class, file" in title(figure) and min(margins(figure)) > 5


def test_mistakes_draw_grey_images_without_stretching_their_contrast() -> None:
    dim = np.full((1, 8, 8, 1), 100, np.uint8)
    image = training.mistakes(dim, true=["a"], predicted=["b"], confidence=[1.0], **COUNTS).axes[0].images[0]
    assert image.norm(np.array([100])) == pytest.approx(100 / 255)


def test_mistakes_draw_transparent_pixels_grey() -> None:
    clear = np.zeros((1, 8, 8, 4), np.uint8)
    figure = training.mistakes(clear, true=["a"], predicted=["b"], confidence=[1.0], **COUNTS)
    area = figure.axes[0].get_window_extent()
    pixels = render(figure)
    assert pixels[
        round(pixels.shape[0] - (area.y0 + area.y1) / 2), round((area.x0 + area.x1) / 2), :3
    ] == pytest.approx(255 * np.array(to_rgb("0.85")), abs=2)


def test_mistakes_leave_unused_places_of_the_last_row_empty() -> None:
    figure = training.mistakes(
        np.zeros((7, 8, 8, 3), np.uint8), true=CLASSES[:7], predicted=CLASSES[1:8], confidence=[0.9] * 7, **COUNTS
    )
    assert [axes.axison for axes in figure.axes] == [True] * 7 + [False] * 2


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (1406, "the 2 most confident of 1,406 mistakes in 10,000 images"),
        (2, "all 2 mistakes in 10,000 images"),
    ],
)
def test_mistakes_title_counts_shown_and_all_mistakes(wrong, expected) -> None:
    images = np.zeros((2, 8, 8, 1), np.uint8)
    figure = training.mistakes(
        images, true=["a"] * 2, predicted=["b"] * 2, confidence=[1.0] * 2, wrong=wrong, of=10_000
    )
    assert expected in title(figure)


def test_mistakes_without_any_are_a_text() -> None:
    figure = training.mistakes(
        np.zeros((0, 32, 32, 3), np.uint8), true=[], predicted=[], confidence=[], wrong=0, of=180
    )
    assert "none in 180 images" in title(figure)


def test_mistakes_of_unequal_lengths_raise() -> None:
    with pytest.raises(ValueError, match=r"equally long, got \[2, 2, 1, 2\]"):
        training.mistakes(
            np.zeros((2, 8, 8, 1), np.uint8), true=["a", "b"], predicted=["b"], confidence=[1.0, 1.0], **COUNTS
        )


def test_curves_without_validation_mark_no_epoch_and_say_so() -> None:
    columns = {name: values for name, values in history(10).items() if not name.startswith("val_")}
    figure = training.curves(columns, best_epoch=10)
    assert [line.get_label() for line in figure.axes[0].lines] == ["training"]
    assert "without validation images: the weights are those after the last of 10 epochs" in title(figure)


# All of them


def test_figures_of_extreme_values_raise_no_warning() -> None:
    broken = history(200)
    broken["loss"][5:] = [np.nan] * 195
    broken["val_loss"] = [np.inf] * 200
    broken["learning_rate"] = [0.0] * 200
    for figure in [
        training.curves(broken, best_epoch=200),
        training.patch_embeddings(np.zeros((1, 1, 1, 4))),
        training.patch_embeddings(np.full((2, 2, 3, 5), np.nan)),
        training.patch_embeddings(random(16, 16, 4, 1536)),
        training.depthwise_kernels(np.full((1, 1, 4, 1), -7.0), block=0),
        training.depthwise_kernels(np.full((3, 3, 4, 1), np.inf), block=0),
        training.depthwise_kernels(random(11, 11, 1536, 1), block=0),
        training.confusion_matrix(np.zeros((2, 2), int), classes=["a", "b"]),
        training.mistakes(
            np.zeros((25, 224, 112, 4), np.uint8),
            true=["a"] * 25,
            predicted=["b"] * 25,
            confidence=[np.nan] * 25,
            **COUNTS,
        ),
    ]:
        render(figure)


def test_drawing_imports_no_pyplot_pandas_tensorflow_or_mlflow() -> None:
    """Pyplot keeps every figure alive and is not safe in threads."""
    program = """
import sys, io, numpy
from pipeline.evaluation.figures import training
training.depthwise_kernels(numpy.ones((3, 3, 4, 1)), block=0).savefig(io.BytesIO())
print({"matplotlib.pyplot", "pandas", "tensorflow", "mlflow"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
