"""What the figures of a report show."""

from pipeline.evaluation.figures.report import accuracy_vs_cost, to_svg, validation_curves
from pipeline.evaluation.figures.style import COLOURS
from tests.support.leaderboard_rows import make_row


def lines(axes):
    return [line for line in axes.lines if len(line.get_xdata()) > 1]


def test_each_run_is_a_line_in_the_colour_of_its_recipe_and_dashed_if_it_has_not_finished():
    found = [make_row(1, [0.9, 0.8]), make_row(2, [0.7], state="running")]
    curves = {run.id: [(1, 0.1), (2, 0.2)] for one in found for run in one.recipe.runs}
    (axes,) = validation_curves(found, curves).axes
    assert [line.get_color() for line in lines(axes)] == [COLOURS[0], COLOURS[0], COLOURS[1]]
    assert [line.get_linestyle() for line in lines(axes)] == ["-", "-", "--"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["1  recipe 1", "2  recipe 2 (running)"]


def test_a_cost_that_fewer_than_two_recipes_have_is_not_drawn():
    found = [make_row(1, [0.9], parameters=10.0, latency_ms=3.0), make_row(2, [0.8], parameters=5.0)]
    figure = accuracy_vs_cost(found, {"parameters": "size", "latency_ms": "latency"}, "accuracy")
    assert [axes.get_xlabel() for axes in figure.axes if axes.axison] == ["size"]
    assert accuracy_vs_cost(found[:1], {"parameters": "size"}, "accuracy") is None


def test_the_pareto_front_bears_numbers_and_what_is_beaten_bears_none():
    cheap, best, beaten = (
        make_row(place, [value], parameters=cost)
        for place, value, cost in ((2, 0.8, 5.0), (1, 0.9, 10.0), (3, 0.7, 12.0))
    )
    figure = accuracy_vs_cost([best, cheap, beaten], {"parameters": "size"}, "accuracy")
    assert {text.get_text() for text in figure.axes[0].texts} == {"1", "2"}


def test_what_has_not_finished_costs_nothing_yet():
    found = [make_row(1, [0.9], parameters=10.0), make_row(2, [0.95], parameters=1.0, state="running")]
    assert accuracy_vs_cost(found, {"parameters": "size"}, "accuracy") is None


def test_the_same_figure_is_the_same_bytes_and_its_names_are_no_formulas():
    found = [make_row(1, [0.9], name=r"costs $5 \frac{"), make_row(2, [0.8])]
    curves = {run.id: [(1, 0.5)] for one in found for run in one.recipe.runs}
    first, second = (to_svg(validation_curves(found, curves)) for _ in range(2))
    assert first == second and first.startswith(b"<?xml")
