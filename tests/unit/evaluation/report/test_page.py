"""The report page: what it writes, and that nothing in it is taken for HTML."""

import base64
import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation import report
from pipeline.evaluation.report.examples import Example, Strip
from pipeline.evaluation.report.leaderboard import rank_groups
from pipeline.evaluation.report.page import Section, answer, describe_test_set_accesses, render_page
from tests.support.leaderboard_rows import make_row

METRIC = "test_accuracy"
HEADINGS = ("Curves", "Differing settings", "Result and cost", "Recall by class", "Filters", "Data: ")
HOSTILE = "<b>\"'&{{ 1 }}"


def make_section(*rows, others=0, test_set_accesses=0, **drawn):
    ranked = rank_groups([row.group for row in rows], METRIC, {})
    return Section("digits", "d0", ranked, others, test_set_accesses, **drawn)


def render(*sections, title="Comparison", notes=(), facts=None):
    return render_page(title, sections, METRIC, notes=notes, facts=facts or {})


def test_render_page_escapes_every_text_that_is_not_its_own():
    rows = [make_row(rank, [0.5], name=HOSTILE, settings={"depth": f"{rank}{HOSTILE}"}) for rank in (1, 2)]
    recalls = {row.group.runs[0].id: pd.Series([0.5], index=[HOSTILE]) for row in rows}
    strips = [Strip(HOSTILE, [Example("0", HOSTILE, HOSTILE, "file:///a.png", b"png")], 0)]
    shown = {"recalls": recalls, "kernels": [(row, b"png") for row in rows], "strips": strips}
    curves = {row.group.runs[0].id: [(1, 0.5)] for row in rows}
    section = make_section(*rows, curves=curves, image_notes=[HOSTILE], **shown)
    page = render(section, section, title=HOSTILE, notes=[HOSTILE], facts={HOSTILE: HOSTILE})
    assert "<b>" not in page and "{{ 1 }}" in page
    escaped = "&lt;b&gt;&#34;&#39;&amp;{{ 1 }}"
    for place in (
        f"<title>{escaped}</title>",
        f"<h1>{escaped}</h1>",
        f'<p class="warn">{escaped}</p>',
        f'</span>{escaped}<span class="small">1 run, seed',
        f'<td class="setting" data-label="depth">1{escaped}</td>',
        f'<th scope="row" class="text name">{escaped}</th>',
        f"<span>1 {escaped}</span></button>",
        f"<h4>{escaped}</h4>",
        f'<img alt="{escaped}" src="data:image/png;base64,cG5n"',
        f'<p class="note">{escaped}</p>',
        f'alt="1 {escaped}: depthwise kernels of the middle block."',
        f"<dt>{escaped}</dt><dd>{escaped}</dd>",
    ):
        assert place in page, place


def test_render_page_allows_its_own_script_and_no_network_access():
    row = make_row(1, [0.5])
    page = render(make_section(row, kernels=[(row, b"png")]))
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in page.partition("</head>")[0]
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:|#)\w+:""", page)
    assert len(script.splitlines()) <= 40, "no more than a reader of the page sees at once"


def test_render_page_marks_the_best_the_worse_and_the_unfinished_rows():
    rows = make_row(1, [0.9, 0.91]), make_row(2, [0.5, 0.51]), make_row(3, [0.99], state="running")
    page = render(make_section(*rows))
    assert page.count('<tr class="best">') == page.count('<tr class="unfinished">') == 1
    assert 'class="text verdict worse"><span>worse<span class="small">seeds</span></span></td>' in page
    assert page.count('<svg class="interval"') == 1, "the best and the unfinished have no gap"


def test_render_page_labels_the_winner_and_puts_single_trials_into_a_table_of_their_own():
    winner, final, trial = make_row(1, [0.9, 0.8]), make_row(2, [0.7, 0.8]), make_row(3, [0.99], name="lucky")

    def of_search(row, role, *, winner=False, **changes):
        runs = [run._replace(role=role, study="mine", is_winner=winner) for run in row.group.runs]
        return replace(row, group=replace(row.group, runs=tuple(runs), **changes))

    trial = replace(trial, group=replace(trial.group, runs=(trial.group.runs[0]._replace(seconds=60.0),)))
    section = make_section(
        of_search(winner, "final", winner=True),
        of_search(final, "final"),
        of_search(trial, "trial", is_ranked_apart=True),
    )
    page = render(section)
    leaderboard, _, others = page.partition("<h3>Trials</h3>")
    trials = others.partition("</table>")[0]
    assert re.findall(r'<span class="badge">(\w+)', page) == ["winner", "final"]
    assert "lucky" not in leaderboard and "lucky" in trials
    assert '<td data-label="state" class="text">finished</td>' in trials and "gap to the best" not in trials
    assert "minutes" in trials and "minutes" not in leaderboard, "a column that is empty is left out"
    expected = "configuration 1 is the winner of search mine: test accuracy 85.00 % ± 7.07 of 2 runs."
    assert answer(section, METRIC).startswith(expected)
    validated = answer(section, "best_val_accuracy")
    assert "best validation accuracy 85.00 % ± 7.07 of 2 runs; test accuracy 85.00 %." in validated


def test_render_page_links_each_run_by_its_seed():
    row = make_row(1, [0.5] * 14)
    runs = tuple(run._replace(params={"seed": str(seed)}) for seed, run in enumerate(row.group.runs))
    row = replace(row, group=replace(row.group, runs=runs))
    page = render(make_section(row, run_urls={runs[1].id: "http://server/#/runs/1"}))
    assert '<a href="http://server/#/runs/1" rel="noreferrer">1</a>' in page
    assert "14 runs, seeds 0, " in page and "and 2 more</span>" in page and page.count('rel="noreferrer"') == 1


def test_render_page_tables_have_a_caption_and_scopes_of_their_headings():
    rows = [make_row(rank, [0.9], settings={"depth": str(rank)}) for rank in (1, 2)]
    recalls = {row.group.runs[0].id: pd.Series([0.5], index=["cat"]) for row in rows}
    page = render(make_section(*rows, recalls=recalls))
    assert page.count("<table") == page.count("<caption>") == 3
    headings = re.findall(r"<th\b[^>]*>", page)
    assert headings and all('scope="col"' in heading or 'scope="row"' in heading for heading in headings)


def test_render_page_writes_many_settings_as_pairs_instead_of_columns():
    def render_settings(number):
        names = [f"setting_{each}" for each in range(number)]
        return render(
            make_section(*[make_row(rank, [0.9], settings=dict.fromkeys(names, str(rank))) for rank in (1, 2)])
        )

    assert 'class="wide"' not in render_settings(9) and 'class="wide"' in render_settings(10)


def test_render_page_shows_strips_of_test_images_with_links_to_their_files():
    example = Example("0", "cat/1.png", "cat, taken for dog", "file:///data/cat/1.png", b"png")
    strips = [Strip("Mistakes", [example, Example("1", "test image 7", "owl, taken for cat")], 5), Strip("Both", [], 0)]
    page = render(make_section(make_row(1, [0.9]), strips=strips, image_notes=["Seven is missing."]))
    assert '<a href="file:///data/cat/1.png" rel="noreferrer">cat/1.png</a>' in page
    assert page.count("<img") == 1 and "test image 7" in page
    assert '<p class="note">5 more.</p>' in page and '<p class="note">None.</p>' in page
    assert '<p class="note">Seven is missing.</p>' in page


def luminance(color):
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first, second):
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_stylesheet_has_the_contrasts_of_wcag_on_a_light_and_a_dark_page():
    stylesheet = (Path(report.__path__[0]) / "report.css").read_text()
    themes = [
        dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", stylesheet, re.DOTALL)
    ]
    assert len(themes) == 2 and themes[0].keys() == themes[1].keys()
    for colors in themes:
        paper = colors["--paper"]
        texts = [contrast(colors[name], paper) for name in ("--ink", "--quiet", "--link", "--good", "--bad")]
        lines = [contrast(colors[name], paper) for name in colors if name.startswith("--row-") or name == "--zero"]
        assert min(texts) >= 4.5 and min(lines) >= 3
        assert contrast(colors["--ink"], colors["--warn-paper"]) >= 4.5


def test_render_page_interval_spans_the_scale_that_all_rows_share():
    rows = make_row(1, [0.9, 0.91]), make_row(2, [0.5, 0.51]), make_row(3, [0.8])
    page = render(make_section(*rows))
    bars = [line for line in page.splitlines() if line.startswith(("<circle", "<line"))]
    assert sum('x1="6.0" x2="6.0"' in line for line in bars) == 2, "no difference is at the left of both rows"
    assert sum('x2="90.0"' in line for line in bars) == 1, "the widest interval ends at the right"


def test_render_page_shows_only_the_costs_and_the_sections_that_have_values():
    page = render(make_section(make_row(1, [0.9])))
    assert '<th scope="col">parameters</th>' not in page
    for heading in (*HEADINGS, "Trials", "Test images"):
        assert f">{heading}" not in page, heading
    rows = [make_row(rank, [0.9], settings={"depth": str(rank)}, parameters=1000.0 * rank) for rank in (1, 2)]
    curves = {row.group.runs[0].id: [(1, 0.5)] for row in rows}
    recalls = {row.group.runs[0].id: pd.Series([0.5, 0.7], index=["cat", "dog"]) for row in rows}
    section = make_section(*rows, curves=curves, recalls=recalls, kernels=[(row, b"png") for row in rows])
    page = render(section, section)
    assert '<th scope="col">parameters</th>' in page and '<td data-label="parameters">2,000</td>' in page
    for heading in HEADINGS:
        assert page.count(f">{heading}") == 2, heading
    assert '<th scope="col">energy, kWh</th>' not in page
    page = render(make_section(make_row(1, [0.9], energy_kwh=0.01234)))
    assert '<td data-label="energy, kWh">0.0123</td>' in page


def test_render_page_class_table_keeps_the_classes_that_differ_most():
    rows = [make_row(rank, [0.9]) for rank in (1, 2)]
    names = [f"class {number:02}" for number in range(25)]
    recalls = {
        rows[0].group.runs[0].id: pd.Series(np.full(25, 0.5), index=names),
        rows[1].group.runs[0].id: pd.Series(np.linspace(0.5, 1, 25), index=names),
    }
    page = render(make_section(*rows, recalls=recalls))
    shown = [name for name in names if f'<th scope="row" class="text name">{name}</th>' in page]
    assert shown == names[5:]
    assert "The 20 classes in which the configurations differ most; 5 more." in " ".join(page.split())
    cell = '<td class="share first" style="--opacity:0.380" data-label="2 configuration 2">100.00 %</td>'
    assert cell in page


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


def test_render_page_marks_refits_and_ensembles_and_names_the_models_that_were_used():
    refit = make_row(1, [0.9, 0.8], settings={"refit": "true"})
    runs = tuple(run._replace(models=(f"taught by models:/m-1{HOSTILE}",)) for run in refit.group.runs)
    ensemble = make_row(2, [0.7])
    members = tuple(run._replace(role="ensemble") for run in ensemble.group.runs)
    page = render(
        make_section(
            replace(refit, group=replace(refit.group, runs=runs)),
            replace(ensemble, group=replace(ensemble.group, runs=members)),
        )
    )
    assert page.count('<span class="badge">refit</span>') == 1
    assert page.count('<span class="badge">ensemble</span>') == 1
    assert page.count('<span class="small">taught by models:/m-1&lt;b&gt;') == 1


def test_render_page_links_the_refit_beside_the_runs_that_it_joined():
    row = make_row(1, [0.9])
    refit = row.group.runs[0]._replace(id="r")
    section = make_section(replace(row, group=replace(row.group, refits=(refit,))), run_urls={"r": "http://x/r"})
    assert '<a href="http://x/r" rel="noreferrer">refit</a>' in render(section)


def test_render_page_leaves_out_a_gap_that_is_not_known():
    page = render(make_section(make_row(1, [0.9]), make_row(2, [float("nan")])))
    assert "nan" not in page.split("<main>")[1].split("How to read")[0]
