"""Cells of CSV files and Markdown tables."""

import csv
import io

import numpy as np
import pandas as pd
import pytest

from pipeline.runtime.tables import (
    csv_cell,
    csv_row,
    markdown_cell,
    markdown_code,
    markdown_facts,
    markdown_text,
    read_csv_cell,
    to_csv,
)

FORMULAS = ['=HYPERLINK("http://x")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "＝1+1", "-a", "+", "'=1", "''=1"]
PLAIN = ["cat", "", "a=b", "1-2", "'cat", "'", "-1", "+1e-3", "-.5", "-inf", " x"]


@pytest.mark.parametrize("text", FORMULAS)
def test_csv_cell_of_text_like_a_formula_begins_with_an_apostrophe(text):
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [*PLAIN, -1, -0.5, float("-inf"), None, True])
def test_csv_cell_of_other_values_is_the_value(value):
    assert csv_cell(value) is value


@pytest.mark.parametrize("text", [*FORMULAS, *PLAIN])
def test_read_csv_cell_returns_what_csv_cell_was_given(text):
    assert read_csv_cell(csv_cell(text)) == text


def test_csv_row_escapes_each_cell():
    assert csv_row(["=1", -1, "-x"]) == ["'=1", -1, "'-x"]


def test_to_csv_escapes_text_and_column_names_and_leaves_numbers():
    table = pd.DataFrame({"class": ["=1+1", "cat"], "@x": [-0.5, np.nan], "count": [-3, 4]})
    table["single"] = np.array([0.1, -0.3], np.float32)
    head, first, second = csv.reader(io.StringIO(to_csv(table)))
    assert head == ["class", "'@x", "count", "single"]
    assert first == ["'=1+1", "-0.5", "-3", "0.1"] and second == ["cat", "", "4", "-0.3"]
    plain = table.rename(columns={"@x": "x"}).replace("=1+1", "dog")
    assert to_csv(plain) == plain.to_csv(index=False)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("kernel_size 5", "kernel_size 5"),
        ("a | b\nc", r"a \| b c"),
        ("<img src=x onerror=y>", r"\<img src=x onerror=y\>"),
        ("[x](http://a.b)", r"\[x\](http\://a.b)"),
        ("![x](y)", r"\!\[x\](y)"),
        ("**bold** `code` ~~gone~~", r"\*\*bold\*\* \`code\` \~\~gone\~\~"),
        ("_a_ __b__ c_d", r"\_a\_ \_\_b\_\_ c_d"),
        ("www.a.b me@x.y &lt; $x$", r"www\.a.b me\@x.y \&lt; \$x\$"),
        ("\\", r"\\"),
    ],
)
def test_markdown_cell_has_no_markup(text, cell):
    assert markdown_cell(text) == cell


def test_markdown_text_keeps_its_paragraphs():
    assert markdown_text("a *b*\n\nc") == "a \\*b\\*\n\nc"


def test_markdown_code_stays_within_its_cell_and_backticks():
    assert markdown_code("a|b `c`\nd") == r"`a\|b 'c'\nd`"
    assert markdown_facts({"again": markdown_code("x")}) == "| | |\n|---|---|\n| **again** | `x` |"
