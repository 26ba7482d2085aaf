"""Text in files that other programs show: cells of CSV files and of Markdown tables, and Markdown.

Names of classes, files and runs are anybody's text. A spreadsheet would evaluate a cell that begins like a formula,
and a page of Markdown would show markup, links and pictures.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from pipeline.runtime.text import one_line

if TYPE_CHECKING:
    import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")  # the last four are full-width
Value = TypeVar("Value")
# Characters of Markdown's markup, underscores at the end of a word, and what becomes a link by itself
MARKUP = re.compile(r"[\\`*\[\]<>&|~!#$@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def csv_cell(value: Value) -> Value | str:
    """Return a value as a cell of a CSV file: text that a spreadsheet would take for a formula begins with `'`.

    A number stays as it is, also one that is spelled as text. `read_csv_cell` is the inverse.
    """
    if isinstance(value, str) and value.lstrip("'").startswith(FORMULA) and not _is_number(value):
        return f"'{value}"
    return value


def read_csv_cell(text: str) -> str:
    """Return the text that `csv_cell` was given."""
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(FORMULA) else text


def csv_row(cells: Iterable[object]) -> list[object]:
    """Return the cells of a row of a CSV file."""
    return [csv_cell(cell) for cell in cells]


def to_csv(table: "pd.DataFrame") -> str:
    """Return a table as the text of a CSV file, without its index."""
    escaped = table.rename(columns=csv_cell)
    for position, dtype in enumerate(table.dtypes):
        # A number of 32 bits would be written with the digits of 64.
        if dtype.kind == "O":
            escaped.isetitem(position, table.iloc[:, position].map(csv_cell).to_numpy())
    return escaped.to_csv(index=False)


def markdown_cell(text: str) -> str:
    """Return text as a cell of a Markdown table, on one line, in which nothing is markup."""
    return markdown_text(" ".join(text.split()))


def markdown_code(text: str) -> str:
    """Return text as code in a cell of a Markdown table."""
    shown = one_line(text).replace("|", r"\|").replace("`", "'")
    return f"`{shown}`"


def markdown_facts(facts: Mapping[str, str]) -> str:
    """Return facts by name as a Markdown table without a header; they are Markdown, see `markdown_cell`."""
    return "\n".join(["| | |", "|---|---|", *(f"| **{name}** | {text} |" for name, text in facts.items())])


def markdown_text(text: str) -> str:
    """Return text as Markdown that shows it as it is."""
    return MARKUP.sub(r"\\\g<0>", text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
