"""The style that all figures share."""

import inspect
from io import BytesIO

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.evaluation.figures import (
    heat_map,
    history,
    importances,
    parallel_coordinates,
    report,
    robustness,
    search_style,
    slices,
    style,
    training,
    value_vs_cost,
)
from tests.support.figures import margins, title
from tests.support.studies import ACCURACY, SIX


def test_finite_or_nan_replaces_infinite_values():
    np.testing.assert_array_equal(style.finite_or_nan([1, np.inf, -np.inf, np.nan]), [1, np.nan, np.nan, np.nan])


@pytest.mark.parametrize(
    ("values", "expected"), [([0.01, 1.0], True), ([0.1, 1.0], False), ([0.0, 1.0], False), ([], False)]
)
def test_spans_decades_of_positive_values_beyond_a_factor_of_20(values, expected):
    assert style.spans_decades(np.array(values)) is expected


def test_ellipsize_fits_the_width_and_keeps_both_ends():
    name = "a name that is " + "very " * 20 + "long"
    short = style.ellipsize(name, 1.5, 10)
    assert style.text_width(short, 10) <= 1.5
    assert short.startswith("a name") and short.endswith("long") and "…" in short
    assert style.ellipsize("two\nlines", 5, 10) == "two lines"


def test_text_figure_holds_the_text_within_its_edges():
    figure = style.text_figure("No trial has finished")
    assert title(figure).strip() == "No trial has finished"
    assert min(margins(figure)) > 5


def test_axes_at_places_axes_in_inches():
    figure = Figure(figsize=(8, 4))
    axes = style.axes_at(figure, 2, 1, 4, 2)
    assert axes.get_position().bounds == pytest.approx((0.25, 0.25, 0.5, 0.5))


# What a matplotlibrc may hold, or a notebook has set
HOSTILE = {
    "axes.facecolor": "black",
    "axes.prop_cycle": mpl.cycler(color=["yellow"]),
    "figure.autolayout": True,
    "figure.dpi": 40,
    "font.family": "monospace",
    "font.size": 30,
    "lines.linewidth": 9,
    "savefig.bbox": "tight",
    "savefig.dpi": 33,
    "savefig.format": "pdf",
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "text.usetex": True,
    "xtick.labelsize": 30,
}
HISTORY = {name: [0.1, 0.4, 0.7] for name in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")}


def saved(draw):
    file = BytesIO()
    draw().savefig(file, format="png")
    return file.getvalue()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: training.curves(HISTORY, best_epoch=2),
        lambda: training.depthwise_kernels(np.ones((3, 3, 4, 1)), block=0),
        lambda: history.intermediate_curves({0: [0.1, 0.4]}, SIX, **ACCURACY),
        lambda: style.text_figure("No trial has finished"),
    ],
)
def test_figures_are_the_same_whatever_the_user_has_configured(draw):
    expected = saved(draw)
    with mpl.rc_context(HOSTILE):
        assert saved(draw) == expected
        assert mpl.rcParams["font.size"] == 30, "the user's own figures keep their style"


def test_svg_is_the_same_whatever_the_user_has_configured():
    def draw():
        return report.to_svg(report.validation_curves([], {}, "val_accuracy"), name="curves", alt="no curves")

    expected = draw()
    with mpl.rc_context(HOSTILE):
        assert draw() == expected


@pytest.mark.parametrize(
    "module",
    [
        heat_map,
        history,
        importances,
        parallel_coordinates,
        robustness,
        search_style,
        slices,
        style,
        training,
        value_vs_cost,
    ],
)
def test_every_function_that_returns_a_figure_is_in_the_default_style(module):
    functions = [
        each for each in vars(module).values() if inspect.isfunction(each) and each.__module__ == module.__name__
    ]
    drawing = [each for each in functions if "Figure" in str(each.__annotations__.get("return"))]
    public = [each for each in drawing if not each.__name__.startswith("_")]
    assert public and [each.__name__ for each in public if not hasattr(each, "__wrapped__")] == []


def test_draw_title_keeps_the_title_on_one_line_and_wraps_the_notes_below_it():
    figure = style.Figure(figsize=(6.4, 3))
    style.draw_title(
        figure, style.titled("Curves", "a data set, run " + "very long " * 20), "short", "", *["note " * 9] * 3
    )
    heading, notes = (text.get_text() for text in figure.texts)
    assert heading.startswith("Curves: a data set") and "\n" not in heading
    assert notes.split("\n")[0].startswith("short; note") and len(notes.split("\n")) == 2
    assert min(margins(figure)) > 5


def test_savefig_as_svg_gives_the_same_bytes_at_any_time(tmp_path, monkeypatch):
    for name, epoch in (("a", "0"), ("b", "1000000")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        training.depthwise_kernels(np.ones((3, 3, 4, 1)), block=0).savefig(tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
