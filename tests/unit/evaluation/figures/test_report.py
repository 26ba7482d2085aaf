"""The plots of a report, and their SVG."""

import re
from dataclasses import replace
from xml.etree import ElementTree

from pipeline.evaluation.figures.report import VARIABLES, metric_vs_cost, to_svg, validation_curves
from pipeline.evaluation.figures.style import COLORS
from tests.support.leaderboard_rows import make_row

HOSTILE = r"</title><script>alert(1)</script> $5 \frac{ 'a' & "


def lines(axes):
    return [line for line in axes.lines if len(line.get_xdata()) > 1]


def svg_of(plot, alt="a plot"):
    return ElementTree.fromstring(to_svg(plot, name="plot", alt=alt))  # noqa: S314


def titles(element):
    return [title.text for title in element.iter("title")]


def test_validation_curves_are_a_line_a_run_in_the_color_of_its_row_dashed_if_unfinished():
    rows = [make_row(1, [0.9, 0.8]), make_row(2, [0.7], state="running")]
    curves = {run.id: [(1, 0.1), (2, 0.2)] for row in rows for run in row.group.runs}
    plot = validation_curves(rows, curves, "val_accuracy")
    (axes,) = plot.figure.axes
    assert [line.get_color() for line in lines(axes)] == [color.lower() for color in (COLORS[0], COLORS[0], COLORS[1])]
    assert [line.get_linestyle() for line in lines(axes)] == ["-", "-", "--"]
    assert [mark.position for mark in plot.marks.values()] == [0, 0, 1]


def test_svg_of_curves_tells_of_each_line_and_of_each_point():
    rows = [make_row(1, [0.9]), make_row(2, [0.7], state="running")]
    curves = {"1-0": [(1, 0.5), (2, float("nan")), (3, 0.25)], "2-0": [(1, 0.125)]}
    first, second = svg_of(validation_curves(rows, curves, "val_accuracy")).findall(".//g[@class='series']")
    assert (first.get("data-row"), second.get("data-row")) == ("0", "1")
    assert titles(first) == [
        "1 configuration 1: best 50.00 % at epoch 1, last 25.00 % at epoch 3",
        "1 configuration 1: 50.00 % at epoch 1",
        "1 configuration 1: 25.00 % at epoch 3",
    ]
    assert titles(second)[0].startswith("2 configuration 2 (running): best 12.50 %")
    assert first.find("path[@class='reach']").get("d") == first.findall("path")[1].get("d")


def test_svg_of_a_long_curve_has_no_points_and_stays_small():
    rows = [make_row(1, [0.9] * 5)]
    curves = {run.id: [(epoch, (epoch * 37 % 101) / 101) for epoch in range(300)] for run in rows[0].group.runs}
    plot = validation_curves(rows, curves, "val_accuracy")
    assert all(len(titles(series)) == 1 for series in svg_of(plot).findall(".//g[@class='series']"))
    assert len(to_svg(plot, name="plot", alt="")) < 70_000


def test_svg_has_the_colors_of_the_stylesheet_alone_and_texts_as_texts():
    rows = [make_row(rank, [0.9 - rank / 50], parameters=rank * 1000.0) for rank in range(1, 10)]
    curves = {row.group.runs[0].id: [(1, 0.5), (2, 0.6)] for row in rows[:7]}
    plots = [
        validation_curves(rows, curves, "val_accuracy"),
        *metric_vs_cost(rows, {"parameters": "size"}, "test_accuracy").values(),
    ]
    for plot in plots:
        text = to_svg(plot, name="plot", alt="a plot")
        assert not re.search(r"#[0-9a-f]{6}(?!\w)|rgb|font-family|<style", text)
        assert set(re.findall(r"var\(--[\w-]+\)", text)) <= set(VARIABLES.values())
    labels = [text.text for text in svg_of(plots[0]).iter("text")]
    assert {"epoch", "validation accuracy", "1", "2"} <= set(labels)


def test_svg_is_deterministic_and_has_ids_of_its_own_in_a_page():
    rows = [make_row(1, [0.9]), make_row(2, [0.8])]
    curves = {run.id: [(1, 0.5), (2, 0.6)] for row in rows for run in row.group.runs}
    first, again, other = (
        to_svg(validation_curves(rows, curves, "val_accuracy"), name=name, alt="")
        for name in ("curves-0", "curves-0", "curves-1")
    )
    assert first == again and first.startswith("<svg ")
    ids = [set(re.findall(r'\bid="([^"]*)"', text)) for text in (first, other)]
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', first)) <= ids[0]


def test_svg_escapes_names():
    rows = [make_row(1, [0.9], name=HOSTILE), make_row(2, [0.8])]
    run = rows[0].group.runs[0]
    rows[0] = replace(rows[0], group=replace(rows[0].group, runs=(run._replace(params={"seed": HOSTILE}),)))
    svg = svg_of(validation_curves(rows, {run.id: [(1, 0.5)]}, "val_accuracy"), alt=HOSTILE)
    assert svg.get("aria-label") == HOSTILE and not list(svg.iter("script"))
    assert f"1 {HOSTILE}, seed {HOSTILE}: 50.00 % at epoch 1" in titles(svg)


def test_metric_vs_cost_leaves_out_a_cost_that_fewer_than_two_rows_have():
    rows = [make_row(1, [0.9], parameters=10.0, latency_ms=3.0), make_row(2, [0.8], parameters=5.0)]
    plots = metric_vs_cost(rows, {"parameters": "size", "latency_ms": "latency"}, "test_accuracy")
    assert list(plots) == ["parameters"]
    (axes,) = plots["parameters"].figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("size", "test accuracy")
    assert metric_vs_cost(rows[:1], {"parameters": "size"}, "test_accuracy") == {}


def test_metric_vs_cost_labels_the_pareto_front_with_ranks_and_tells_of_each_point():
    cheap, best, beaten = (
        make_row(rank, [value], parameters=cost)
        for rank, value, cost in ((2, 0.8, 5.0), (1, 0.9, 10.0), (3, 0.7, 12.0))
    )
    plot = metric_vs_cost([best, cheap, beaten], {"parameters": "size"}, "test_accuracy")["parameters"]
    assert {text.get_text() for text in plot.figure.axes[0].texts} == {"1", "2"}
    assert [mark.text for mark in plot.marks.values()] == [
        "1 configuration 1: 90.00 %, size 10",
        "2 configuration 2: 80.00 %, size 5",
        "3 configuration 3: 70.00 %, size 12",
    ]


def test_metric_vs_cost_leaves_out_unfinished_runs_and_trials_that_are_ranked_apart():
    rows = [make_row(rank, [0.9], parameters=10.0 * rank) for rank in (1, 2, 3)]
    lucky = replace(rows[1], group=replace(rows[1].group, is_ranked_apart=True))
    assert metric_vs_cost([rows[0], lucky], {"parameters": "size"}, "test_accuracy") == {}
    unfinished = make_row(2, [0.95], parameters=1.0, state="running")
    assert metric_vs_cost([rows[0], unfinished], {"parameters": "size"}, "test_accuracy") == {}
