"""The figures of a report."""

from pipeline.evaluation.figures.report import accuracy_vs_cost, to_svg, validation_curves
from pipeline.evaluation.figures.style import COLORS
from tests.support.leaderboard_rows import make_row


def lines(axes):
    return [line for line in axes.lines if len(line.get_xdata()) > 1]


def test_validation_curves_are_a_line_a_run_in_the_color_of_its_row_dashed_if_unfinished():
    rows = [make_row(1, [0.9, 0.8]), make_row(2, [0.7], state="running")]
    curves = {run.id: [(1, 0.1), (2, 0.2)] for row in rows for run in row.group.runs}
    (axes,) = validation_curves(rows, curves).axes
    assert [line.get_color() for line in lines(axes)] == [COLORS[0], COLORS[0], COLORS[1]]
    assert [line.get_linestyle() for line in lines(axes)] == ["-", "-", "--"]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["1  configuration 1", "2  configuration 2 (running)"]


def test_accuracy_vs_cost_leaves_out_a_cost_that_fewer_than_two_rows_have():
    rows = [make_row(1, [0.9], parameters=10.0, latency_ms=3.0), make_row(2, [0.8], parameters=5.0)]
    figure = accuracy_vs_cost(rows, {"parameters": "size", "latency_ms": "latency"}, "accuracy")
    assert [axes.get_xlabel() for axes in figure.axes if axes.axison] == ["size"]
    assert accuracy_vs_cost(rows[:1], {"parameters": "size"}, "accuracy") is None


def test_accuracy_vs_cost_labels_the_pareto_front_with_ranks_and_nothing_else():
    cheap, best, beaten = (
        make_row(rank, [value], parameters=cost)
        for rank, value, cost in ((2, 0.8, 5.0), (1, 0.9, 10.0), (3, 0.7, 12.0))
    )
    figure = accuracy_vs_cost([best, cheap, beaten], {"parameters": "size"}, "accuracy")
    assert {text.get_text() for text in figure.axes[0].texts} == {"1", "2"}


def test_accuracy_vs_cost_leaves_out_unfinished_runs():
    rows = [make_row(1, [0.9], parameters=10.0), make_row(2, [0.95], parameters=1.0, state="running")]
    assert accuracy_vs_cost(rows, {"parameters": "size"}, "accuracy") is None


def test_to_svg_is_deterministic_and_takes_no_name_for_a_formula():
    rows = [make_row(1, [0.9], name=r"costs $5 \frac{"), make_row(2, [0.8])]
    curves = {run.id: [(1, 0.5)] for row in rows for run in row.group.runs}
    first, second = (to_svg(validation_curves(rows, curves)) for _ in range(2))
    assert first == second and first.startswith(b"<?xml")
