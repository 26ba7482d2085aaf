"""The report page: what it writes, and that nothing in it is taken for HTML."""

import re

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.report.leaderboard import rank_groups
from pipeline.evaluation.report.page import Section, answer, describe_test_set_accesses, render_page
from tests.support.leaderboard_rows import make_row

METRIC = "test_accuracy"
HOSTILE = "<b>\"'&{{ 1 }}"


def make_section(*rows, others=0, test_set_accesses=0, **drawn):
    ranked = rank_groups([row.group for row in rows], METRIC, {})
    return Section("digits", "d0", ranked, others, test_set_accesses, **drawn)


def render(*sections, title="Comparison", notes=(), facts=None):
    return render_page(title, sections, METRIC, notes=notes, facts=facts or {})


def test_render_page_escapes_every_text_that_is_not_its_own():
    rows = [make_row(rank, [0.5], name=HOSTILE, settings={"depth": f"{rank}{HOSTILE}"}) for rank in (1, 2)]
    recalls = {row.group.runs[0].id: pd.Series([0.5], index=[HOSTILE]) for row in rows}
    section = make_section(*rows, recalls=recalls, kernels=[(row, b"png") for row in rows])
    page = render(section, section, title=HOSTILE, notes=[HOSTILE], facts={HOSTILE: HOSTILE})
    assert "<b>" not in page and "{{ 1 }}" in page
    escaped = "&lt;b&gt;&#34;&#39;&amp;{{ 1 }}"
    for place in (
        f"<title>{escaped}</title>",
        f"<h1>{escaped}</h1>",
        f'<p class="warn">{escaped}</p>',
        f"</span>{escaped}</td>",
        f"<td>1{escaped}</td>",
        f'<td class="text">{escaped}</td>',
        f'alt="1 {escaped}: depthwise kernels of the middle block."',
        f"<dt>{escaped}</dt><dd>{escaped}</dd>",
    ):
        assert place in page, place


def test_render_page_forbids_scripts_and_network_access():
    row = make_row(1, [0.5])
    page = render(make_section(row, kernels=[(row, b"png")]))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in page.partition("</head>")[0]
    assert "<script" not in page and not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:|#)\w+:""", page)


def test_render_page_marks_the_best_the_worse_and_the_unfinished_rows():
    rows = make_row(1, [0.9, 0.91]), make_row(2, [0.5, 0.51]), make_row(3, [0.99], state="running")
    page = render(make_section(*rows))
    assert page.count('<tr class="best">') == page.count('<tr class="unfinished">') == 1
    assert '<td class="text verdict worse">worse<br><span class="over">seeds</span></td>' in page
    assert page.count('<svg class="interval"') == 1, "the best and the unfinished have no gap"


def test_render_page_interval_spans_the_scale_that_all_rows_share():
    rows = make_row(1, [0.9, 0.91]), make_row(2, [0.5, 0.51]), make_row(3, [0.8])
    page = render(make_section(*rows))
    bars = [line for line in page.splitlines() if line.startswith(("<circle", "<line"))]
    assert sum('x1="6.0" x2="6.0"' in line for line in bars) == 2, "no difference is at the left of both rows"
    assert sum('x2="124.0"' in line for line in bars) == 1, "the widest interval ends at the right"


def test_render_page_shows_only_the_costs_and_the_sections_that_have_values():
    page = render(make_section(make_row(1, [0.9])))
    assert "<th>parameters</th>" not in page
    for heading in ("Curves", "Differing settings", "Accuracy and cost", "Accuracy by class", "Filters", "Data: "):
        assert f">{heading}" not in page, heading
    rows = [make_row(rank, [0.9], settings={"depth": str(rank)}, parameters=1000.0 * rank) for rank in (1, 2)]
    curves = {row.group.runs[0].id: [(1, 0.5)] for row in rows}
    recalls = {row.group.runs[0].id: pd.Series([0.5, 0.7], index=["cat", "dog"]) for row in rows}
    section = make_section(*rows, curves=curves, recalls=recalls, kernels=[(row, b"png") for row in rows])
    page = render(section, section)
    assert "<th>parameters</th>" in page and "<td>2,000</td>" in page
    for heading in ("Curves", "Differing settings", "Accuracy and cost", "Accuracy by class", "Filters", "Data: "):
        assert page.count(f">{heading}") == 2, heading


def test_render_page_class_table_keeps_the_classes_that_differ_most():
    rows = [make_row(rank, [0.9]) for rank in (1, 2)]
    names = [f"class {number:02}" for number in range(25)]
    recalls = {
        rows[0].group.runs[0].id: pd.Series(np.full(25, 0.5), index=names),
        rows[1].group.runs[0].id: pd.Series(np.linspace(0.5, 1, 25), index=names),
    }
    page = render(make_section(*rows, recalls=recalls))
    shown = [name for name in names if f'<td class="text">{name}</td>' in page]
    assert shown == names[5:]
    assert "The 20 classes in which the configurations differ most; 5 more." in " ".join(page.split())
    assert '<td style="font-weight:600;background:rgba(0,114,178,0.380)">100.00 %</td>' in page


def test_render_page_of_different_data_warns_and_ranks_each_by_itself():
    section = make_section(make_row(1, [0.9]), others=3)
    page = render(section, section)
    assert "These runs used 2 different data sets (digits d0; digits d0)." in page
    assert page.count("<h3>Leaderboard</h3>") == 2
    assert "8 configurations, 2 runs and more, ranked by test accuracy" in page


@pytest.mark.parametrize(
    ("rows", "others", "expected"),
    [
        ([([0.5], "running")], 0, "No run has finished, so there is nothing to conclude yet."),
        (
            [([0.5], "finished")],
            0,
            "configuration 1 has the highest test accuracy: 50.00 % of one run. "
            "There is no other configuration to compare it with.",
        ),
        (
            [([0.9, 0.91], "finished"), ([0.5, 0.51], "finished")],
            0,
            "configuration 1 has the highest test accuracy: 90.50 % ± 0.71 of 2 runs. "
            "The other is worse by more than noise.",
        ),
        (
            [([0.9, 0.91], "finished"), ([0.89, 0.9], "finished"), ([0.5], "finished"), ([0.4], "finished")],
            4,
            "configuration 1 has the highest test accuracy: 90.50 % ± 0.71 of 2 runs. "
            "Of the next 3, 1 is within noise of it, 2 are worse by more than noise.",
        ),
    ],
)
def test_answer_names_the_best_and_counts_the_verdicts_of_the_others(rows, others, expected):
    section = make_section(
        *[make_row(rank, values, state=state) for rank, (values, state) in enumerate(rows, start=1)], others=others
    )
    assert answer(section, METRIC) == expected


@pytest.mark.parametrize(
    ("accesses", "expected"),
    [
        (0, "No model of these runs was evaluated on the test set of digits."),
        (1, "Models of these runs were evaluated on the test set of digits 1 time."),
        (4, "Models of these runs were evaluated on the test set of digits 4 times."),
    ],
)
def test_describe_test_set_accesses_counts_them(accesses, expected):
    assert describe_test_set_accesses(make_section(make_row(1, [0.5]), test_set_accesses=accesses)) == expected
