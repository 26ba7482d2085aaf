"""What the pictures of a run show."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.evaluation.figures import training
from tests.support.figures import drawn, ink, title

TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SO_MANY = {"wrong": 7, "of": 180}  # mistakes and images


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


def picture(figure: Figure) -> NDArray:
    """The array that the figure's first image draws, NaN where blank."""
    return np.ma.filled(np.asanyarray(figure.axes[0].images[0].get_array()), np.nan)


def cells(board: NDArray, columns: int) -> NDArray:
    """A mosaic cut at its gaps: (rows * columns, height, width, ...)."""
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


def test_the_best_epoch_is_marked_at_its_place_in_every_panel_with_the_first_epoch_being_1() -> None:
    figure = training.curves(history(10), best_epoch=7)
    dotted = [[line for line in axes.lines if line.get_label() == "best epoch 7"] for axes in figure.axes]
    assert [lines[0].get_xdata() for lines in dotted] == [[7, 7]] * 3
    rings = [line for axes in figure.axes[:2] for line in axes.lines if line.get_markersize() == 10]
    assert [np.asarray(ring.get_xydata()).tolist() for ring in rings] == [
        [[7, history(10)["val_loss"][6]]],
        [[7, history(10)["val_accuracy"][6]]],
    ]
    assert "10 epochs" in title(figure)
    assert f"best epoch 7: validation accuracy {100 * history(10)['val_accuracy'][6]:.1f} %" in title(figure)


def test_each_panel_draws_its_own_columns_of_the_history() -> None:
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
    assert columns["learning_rate"] in [value for (panel, _), value in shown.items() if panel == "learning rate"]


def test_a_single_epoch_is_visible_as_dots() -> None:
    lines = [line for axes in training.curves(history(1), best_epoch=1).axes[:2] for line in axes.lines]
    assert {line.get_marker() for line in lines if line.get_label() in {"training", "validation"}} == {"o"}


def test_a_first_epoch_with_a_huge_loss_does_not_flatten_the_others() -> None:
    columns = history(10)
    assert training.curves(columns, best_epoch=10).axes[0].get_yscale() == "linear"
    columns["val_loss"][0] = 100.0
    assert training.curves(columns, best_epoch=10).axes[0].get_yscale() == "log"


@pytest.mark.parametrize("epoch", [0, 4])
def test_a_best_epoch_outside_the_history_is_refused_by_its_bounds(epoch: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 3: got {epoch}"):
        training.curves(history(3), best_epoch=epoch)


# Filters


def test_the_mosaic_holds_every_filter_once_and_what_is_left_over_is_blank() -> None:
    kernels = np.zeros((3, 3, 7, 1))
    for place in range(7):  # filter n has its only weight at place n
        kernels[place // 3, place % 3, place] = 1
    squares = cells(picture(training.depthwise_kernels(kernels, block=0)), columns=3)
    centres = squares[:, 1::3, 1::3]  # one point of each weight, which is drawn 3 x 3
    assert [square.ravel().argmax() for square in centres[:7]] == list(range(7))
    assert (centres[:7].sum(axis=(1, 2)) == 1).all()
    assert np.isnan(squares[7:]).all()


def test_filters_are_parted_by_blank_lines() -> None:
    board = picture(training.depthwise_kernels(random(8, 8, 9, 1), block=0))
    assert board.shape == (26, 26)
    assert np.isnan(board[[8, 17]]).all()
    assert np.isnan(board[:, [8, 17]]).all()
    assert np.isnan(board).sum() == 26**2 - 24**2


def test_weights_of_equal_size_and_opposite_sign_are_equally_far_from_the_colour_of_zero() -> None:
    kernels = np.array([1.0, -1.0, 0.0]).reshape(1, 3, 1, 1).repeat(3, axis=0)
    image = training.depthwise_kernels(kernels, block=0).axes[0].images[0]
    positive, negative, zero = (image.to_rgba(np.array([[value]]))[0, 0, :3] for value in (1, -1, 0))
    assert positive[0] > positive[2]  # red
    assert negative[2] > negative[0]  # blue
    assert np.ptp(zero) < 0.01  # grey
    assert zero.max() < 0.9  # which is not the white of a blank
    assert np.asarray(image.norm(np.array([-1, 0, 1]))).tolist() == [0, 0.5, 1]


def test_weak_filters_come_last_at_full_contrast_unless_they_are_next_to_nothing() -> None:
    kernels = random(5, 5, 4, 1) * np.array([1e-6, 0.1, 1, 0])[:, None]
    squares = np.abs(cells(picture(training.depthwise_kernels(kernels, block=0)), columns=2))
    assert squares.max(axis=(1, 2)) == pytest.approx([1, 1, 0, 0], abs=1e-3)


def test_patch_embeddings_show_the_colour_that_a_filter_answers_to() -> None:
    kernels = np.zeros((2, 2, 3, 2))
    kernels[:, :, 0, 0] = 2  # for red
    kernels[:, :, 2, 1] = -1  # against blue
    red, yellow = cells(picture(training.patch_embeddings(kernels)), columns=2)
    assert np.unique(red.reshape(-1, 4), axis=0).tolist() == [[0.9, 0.5, 0.5, 1]]
    assert np.unique(yellow.reshape(-1, 4), axis=0) == pytest.approx(np.array([[0.5, 0.5, 0.1, 1]]))


@pytest.mark.parametrize(("channels", "squares"), [(1, 1), (2, 2), (3, 1), (4, 2), (5, 5)])
def test_channels_that_are_no_colour_get_a_grey_square_each(channels: int, squares: int) -> None:
    board = picture(training.patch_embeddings(random(8, 8, channels, 4)))
    assert board.shape == (2 * 9 - 1, 2 * (8 * squares + 1) - 1, 4)
    coloured = np.ptp(board[..., :3], axis=-1).any()
    assert coloured == (channels in (3, 4))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_filter_that_is_not_finite_leaves_the_others_as_they_were_and_is_counted(value: float) -> None:
    kernels = random(4, 4, 3, 4)
    kernels[:, :, :, 3] = 1e-9
    sound = picture(training.patch_embeddings(kernels))
    kernels[:, :, :, 3] = value
    figure = training.patch_embeddings(kernels)
    assert np.array_equal(cells(picture(figure), 2)[:3], cells(sound, 2)[:3])
    assert not cells(picture(figure), 2)[3, ..., 3].any()  # transparent
    assert "not finite, in 1 filter" in title(figure)


@pytest.mark.parametrize("filters", [4, 256, 1536])
def test_every_cell_of_a_mosaic_is_drawn_with_the_same_whole_number_of_pixels(filters: int) -> None:
    figure = training.depthwise_kernels(random(5, 5, filters, 1), block=4)
    area, board = figure.axes[0].get_window_extent(), picture(figure)
    assert area.width / board.shape[1] == pytest.approx(round(area.width / board.shape[1]))
    assert area.height / board.shape[0] == pytest.approx(round(area.height / board.shape[0]))
    assert f"block 4: {filters:,} filters of 5 × 5" in title(figure)


def test_filters_over_epochs_show_the_largest_at_the_end_an_epoch_a_column_on_one_scale_a_row() -> None:
    last = np.zeros((3, 3, 20, 1))
    last[1, 1, :, 0] = np.arange(20)
    figure = training.filters_over_epochs({1: last / 2, 10: last}, block=4)
    assert "block 4 at 2 epochs" in title(figure) and "the 10 of 20" in title(figure)
    centres = [np.asarray(axes.images[0].get_array())[1, 1] for axes in figure.axes]
    assert centres[:4] == [9.5, 19, 9, 18]
    assert {axes.images[0].norm.vmax for axes in figure.axes[:2]} == {19}
    assert [axes.get_xlabel() for axes in figure.axes[-2:]] == ["1", "10"]


# Confusion matrix


def test_the_numbers_in_the_cells_are_the_counts_with_true_classes_as_rows() -> None:
    counts = np.arange(100).reshape(10, 10)
    figure = training.confusion_matrix(counts, classes=TEN)
    written = np.zeros_like(counts)
    for text in figure.axes[0].texts:
        column, row = text.get_position()
        written[int(row), int(column)] = int(text.get_text())
    assert np.array_equal(written, counts)
    assert figure.axes[0].get_ylabel() == "true class"
    assert "4,950 images" in title(figure)
    assert "495 right (10.0 %), 4,455 wrong" in title(figure)


def test_colour_is_the_share_of_the_row_and_a_class_without_images_has_none() -> None:
    figure = training.confusion_matrix(np.array([[1, 3, 0], [0, 0, 0], [0, 0, 700]]), classes=["a", "b", "c"])
    assert picture(figure).tolist() == [[0.25, 0.75, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("number", [2, 10, 100])
def test_every_class_is_named_on_both_sides_and_nothing_is_cut_off(number: int) -> None:
    classes = [f"class number {index}" for index in range(number)]
    figure = training.confusion_matrix(np.eye(number, dtype=int), classes=classes)
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == classes
    assert min(ink(figure)) > 5


def test_numbers_too_small_to_read_are_left_out() -> None:
    assert not training.confusion_matrix(12345 * np.eye(100, dtype=int), classes=["c"] * 100).axes[0].texts


@pytest.mark.parametrize("name", ["W" * 200, "i" * 200, "two\nlines", "$_^{$", "50 $ \\ & %"])
def test_any_class_name_can_be_drawn_and_is_not_cut_off(name: str) -> None:
    counts = np.full((2, 2), 1_000_000)
    assert min(ink(training.confusion_matrix(counts, classes=[name, "b"]))) > 5
    image = np.zeros((1, 8, 8, 1), np.uint8)
    assert min(ink(training.mistakes(image, true=[name], predicted=[name], confidence=[1.0], **SO_MANY))) > 5


def test_names_that_no_font_here_can_draw_are_told_apart() -> None:  # pytest makes a warning an error
    figure = training.confusion_matrix(np.eye(2, dtype=int), classes=["日本", "中国"])
    drawn(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["U+65E5 U+672C", "U+4E2D U+56FD"]


def test_a_long_name_keeps_its_start_and_end() -> None:
    names = [f"a very very very very very long name that ends in {end}" for end in "xy"]
    axes = training.confusion_matrix(np.eye(2, dtype=int), classes=names).axes[0]
    x, y = (label.get_text() for label in axes.get_yticklabels())
    assert x.startswith("a very")
    assert (x[-4:], y[-4:]) == ("in x", "in y")


# Mistakes


def test_each_mistake_has_what_was_said_and_how_surely_above_and_the_truth_below() -> None:
    images = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1)
    figure = training.mistakes(
        images, true=["cat", "dog"], predicted=["frog", "ship"], confidence=[0.987, 0.5], **SO_MANY
    )
    assert [axes.get_title() for axes in figure.axes] == ["frog (99 %)", "ship (50 %)"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["cat", "dog"]
    assert np.array_equal([np.asarray(axes.images[0].get_array()) for axes in figure.axes], images[..., 0])
    assert "8 × 8 pixels" in title(figure)


def test_gray_images_are_not_stretched_to_full_contrast() -> None:
    dim = np.full((1, 8, 8, 1), 100, np.uint8)
    image = training.mistakes(dim, true=["a"], predicted=["b"], confidence=[1.0], **SO_MANY).axes[0].images[0]
    assert image.norm(np.array([100])) == pytest.approx(100 / 255)


def test_transparent_pixels_show_grey_rather_than_their_hidden_colour() -> None:
    clear = np.zeros((1, 8, 8, 4), np.uint8)
    figure = training.mistakes(clear, true=["a"], predicted=["b"], confidence=[1.0], **SO_MANY)
    area = figure.axes[0].get_window_extent()
    pixels = drawn(figure)
    assert pixels[
        round(pixels.shape[0] - (area.y0 + area.y1) / 2), round((area.x0 + area.x1) / 2), :3
    ] == pytest.approx(255 * np.array(to_rgb("0.85")), abs=2)


def test_places_in_the_last_row_that_no_mistake_fills_are_empty() -> None:
    figure = training.mistakes(
        np.zeros((7, 8, 8, 3), np.uint8), true=TEN[:7], predicted=TEN[1:8], confidence=[0.9] * 7, **SO_MANY
    )
    assert [axes.axison for axes in figure.axes] == [True] * 7 + [False] * 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (1406, "The 2 most confident of 1,406 mistakes in 10,000 images"),
        (2, "All 2 mistakes in 10,000 images"),
    ],
)
def test_it_is_said_of_how_many_mistakes_these_are(wrong, said) -> None:
    images = np.zeros((2, 8, 8, 1), np.uint8)
    figure = training.mistakes(
        images, true=["a"] * 2, predicted=["b"] * 2, confidence=[1.0] * 2, wrong=wrong, of=10_000
    )
    assert said in title(figure)


def test_no_mistakes_is_said_in_words() -> None:
    figure = training.mistakes(
        np.zeros((0, 32, 32, 3), np.uint8), true=[], predicted=[], confidence=[], wrong=0, of=180
    )
    assert "No mistakes in 180 images" in title(figure)


def test_mistakes_of_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equally long: got \[2, 2, 1, 2\]"):
        training.mistakes(
            np.zeros((2, 8, 8, 1), np.uint8), true=["a", "b"], predicted=["b"], confidence=[1.0, 1.0], **SO_MANY
        )


# All of them


def test_the_extremes_are_drawn_without_a_warning() -> None:  # pytest makes warnings errors
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
            **SO_MANY,
        ),
    ]:
        drawn(figure)


def test_drawing_leaves_pyplot_and_tensorflow_alone() -> None:
    """Pyplot keeps every figure alive and is not safe in threads."""
    program = """
import sys, io, numpy
from pipeline.evaluation.figures import training
training.depthwise_kernels(numpy.ones((3, 3, 4, 1)), block=0).savefig(io.BytesIO())
print({"matplotlib.pyplot", "pandas", "tensorflow", "mlflow"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
