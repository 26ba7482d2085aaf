"""The report's page in a real Chromium: wide and narrow, light and dark, with and without scripts, and on paper."""

import re
from dataclasses import replace
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.evaluation.report.examples import Example, Strip
from pipeline.evaluation.report.leaderboard import rank_groups
from pipeline.evaluation.report.page import Section, render_page
from tests.support.browser import MISSING, browser
from tests.support.leaderboard_rows import make_row

pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"{MISSING} is not installed")

NAMES = ["digits", "digits depth=6 learning_rate=0.003 optimizer=adamw", "a-name-without-any-space-" * 4, "t000 lr0.1"]
SETTINGS = ("depth", "randaugment_magnitude", "label_smoothing", "batch_norm_momentum", "stochastic_depth")
SETTINGS += ("gradient_clip_norm", "warmup_fraction", "learning_rate", "train_examples")
RIGHT_EDGES = """
return [...document.querySelectorAll("main *")]
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map(e => `${e.tagName} ${e.className} ${e.textContent.slice(0, 40)}`)
"""
SHOWN_LINES = """
return [...document.querySelectorAll("figure.curves .series")]
  .filter(e => getComputedStyle(e).display != "none").map(e => e.dataset.row)
"""


def draw_png(side):
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)).save(file, "PNG")
    return file.getvalue()


def make_section():
    """Make a section with all that a page can show: nine settings, a winner, a trial, a run that goes on."""
    groups = []
    for rank, (name, role, state) in enumerate(
        zip(NAMES, ("final", "final", "final", "trial"), ("finished",) * 3 + ("running",), strict=True), start=1
    ):
        settings = dict.fromkeys(SETTINGS, f"{rank / 7:.4f}")
        values = [0.99 - 0.01 * rank, 0.985 - 0.01 * rank][: 1 if role == "trial" else 2]
        row = make_row(rank, values, name=name, state=state, settings=settings, parameters=1e5 * rank, latency_ms=rank)
        runs = tuple(
            run._replace(role=role, study="s", params={"seed": str(seed)}, seconds=60.0, test_set_accesses=1)
            for seed, run in enumerate(row.group.runs)
        )
        groups.append(replace(row.group, runs=(runs[0]._replace(is_winner=rank == 1), *runs[1:])))
    lucky = make_row(5, [0.999], name="lucky", settings={"depth": "9"}).group
    rows = rank_groups([*groups, replace(lucky, is_ranked_apart=True)], "test_accuracy", {})
    ids = [run.id for row in rows for run in row.group.runs]
    examples = [Example(str(n), f"test/cat/image_{n:04}.png", "cat, taken for dog", "", draw_png(8)) for n in range(10)]
    return Section(
        data="digits",
        fingerprint="d0",
        rows=rows,
        others=0,
        test_set_accesses=4,
        curves={run_id: [(epoch, 1 - 0.5**epoch) for epoch in range(1, 12)] for run_id in ids},
        recalls={run_id: pd.Series(np.linspace(0.8, 1, 10), index=[f"class {n}" for n in range(10)]) for run_id in ids},
        kernels=[(row, draw_png(300)) for row in rows[:2]],
        strips=[Strip("Most confident mistakes", examples, 3)],
        run_urls=dict.fromkeys(ids, "http://127.0.0.1:5000/#/experiments/1/runs/1"),
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    facts = {"runs": "s", "links to runs": f"open while `mlflow ui --backend-store-uri sqlite:////{'a/' * 90}` runs"}
    file.write_text(render_page("Comparison of study s", [make_section()], "test_accuracy", notes=[], facts=facts))
    return file.as_uri()


@pytest.fixture(scope="module")
def chromium():
    with browser() as window:
        yield window


@pytest.fixture
def window(chromium, address):
    chromium.resize(1400)
    chromium.open(address)
    yield chromium
    chromium.command("Emulation.setEmulatedMedia", media="", features=[])
    chromium.command("Emulation.setScriptExecutionDisabled", value=False)


def prefer(window, scheme, *, media=""):
    window.command(
        "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}]
    )


def color(window, selector, name):
    """Return red, green and blue of a computed style of the first element that a selector finds."""
    value = window.run("return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, name)
    return tuple(map(int, re.findall(r"\d+", value)[:3]))


def click_legend(window, position):
    window.click(f".legend button[data-row='{position}']")


@pytest.mark.parametrize("width", [1400, 1200, 1000, 760, 400, 320])
def test_nothing_on_the_page_is_cut_off_or_wider_than_the_window(window, width):
    window.resize(width)
    cut = 'return [...document.querySelectorAll(".scroll")].map(e => e.scrollWidth - e.clientWidth)'
    if width >= 1200 or width <= 760:
        assert max(window.run(cut)) <= 0, "a table has to be scrolled"
        assert window.run(RIGHT_EDGES) == []
    assert window.run("return document.documentElement.scrollWidth") <= width


def test_page_of_400_pixels_is_one_column_in_which_each_value_has_its_heading(window):
    window.resize(400)
    parts = window.run("""
      const boxes = [...document.querySelectorAll("table, figure, .plot, .legend, .strip, .pair img")];
      return boxes.map(e => e.getBoundingClientRect()).map(box => [Math.round(box.left), box.top, box.bottom])""")
    assert {left for left, _, _ in parts} == {16}
    plot, legend = window.run("""
      const boxes = [".curves .plot", ".curves .legend"].map(s => document.querySelector(s).getBoundingClientRect());
      return boxes.map(box => [box.top, box.bottom])""")
    assert legend[0] >= plot[1], "the legend is below its plot"
    values = window.run("""
      return [...document.querySelector("tbody").rows[1].querySelectorAll("td:not(.rank)")]
        .map(e => [getComputedStyle(e, "::before").content.slice(1, -1), e.innerText.split("\\n")[0].trim()])""")
    assert dict(values) == {
        "test accuracy": "96.75 %",
        "gap to the best": "1.00",
        "verdict": "within noise",
        "parameters": "200,000",
        "minutes": "1.0",
        "latency, ms": "2.00",
        "test set evaluations": "2",
    }
    sizes = """
      const plot = document.querySelector(".curves .plot");
      return 10 * plot.getBoundingClientRect().width / plot.viewBox.baseVal.width"""
    assert window.run(sizes) >= 9, "texts of a plot have at least 9 pixels"


def test_page_follows_the_preference_for_a_dark_page_in_its_plots_too(window):
    for scheme, paper, ink in (("light", 250, 30), ("dark", 30, 230)):
        prefer(window, scheme)
        backgrounds, inks = color(window, "body", "backgroundColor"), color(window, ".plot text", "fill")
        assert all(abs(value - paper) < 20 for value in backgrounds) and all(abs(value - ink) < 20 for value in inks)
        assert color(window, ".legend svg path", "stroke") == color(window, ".series[data-row='0'] use", "fill")


def test_page_on_paper_is_light_and_shows_the_lines_that_were_hidden(window):
    click_legend(window, 0)
    prefer(window, "dark", media="print")
    assert min(color(window, "body", "backgroundColor")) > 230 and max(color(window, "body", "color")) < 60
    assert sorted(set(window.run(SHOWN_LINES))) == ["0", "1", "2", "3", "4"]


def test_click_on_the_legend_hides_a_row_s_lines_and_shows_them_again(window):
    assert window.run(SHOWN_LINES).count("1") == 2
    click_legend(window, 1)
    assert sorted(set(window.run(SHOWN_LINES))) == ["0", "2", "3", "4"]
    pressed = 'return [...document.querySelectorAll(".legend button")].map(e => e.ariaPressed)'
    assert window.run(pressed) == ["true", "false", "true", "true", "true"]
    click_legend(window, 1)
    assert window.run(SHOWN_LINES).count("1") == 2


def test_pointer_on_a_point_or_near_a_line_shows_what_it_is(window):
    # two frames later the page has scrolled, which would hide what is shown
    place = """
      const mark = document.querySelector(selector);
      mark.scrollIntoView({block: "center"});
      for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
      const {x, y, width, height} = mark.getBoundingClientRect();
      return [x + width / 2, y + height / 2]"""
    place = f"const selector = arguments[0]; return (async () => {{{place}}})()"
    tip = "const tip = document.querySelector('#tip'); return tip.hidden ? '' : tip.innerText"
    assert window.run(tip) == ""
    window.point_at(*window.run(place, ".series[data-row='4'] use"))
    assert window.run(tip) == "5 lucky: 50.00 % at epoch 1"
    # above the middle of the first segment, which is steep
    x, y = window.run(place, ".series[data-row='4'] use:nth-of-type(2)")
    window.point_at(x - 3, y + 1)
    assert window.run(tip).startswith("5 lucky: ")
    window.point_at(5, 5)
    assert window.run(tip) == ""


def test_page_without_scripts_is_complete(window, address):
    window.command("Emulation.setScriptExecutionDisabled", value=True)
    window.open(address)
    titles = window.run('return [...document.querySelectorAll(".series title")].map(e => e.textContent)')
    assert "1 digits, seed 0: 50.00 % at epoch 1" in titles, "browsers show titles themselves"
    assert sorted(set(window.run(SHOWN_LINES))) == ["0", "1", "2", "3", "4"]
    text = window.text()
    assert all(name in text for name in NAMES) and "Click a name" not in text
    assert window.run("return document.querySelector('#tip').checkVisibility()") is False
    assert window.run("return document.querySelectorAll('.legend button:disabled').length") == 5
