"""HTML from text, tables and pictures: everything that runs say of themselves is escaped here."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple


class Cell(NamedTuple):
    """A cell of a table: HTML, and how it is set."""

    html: str
    kind: str = ""  # CSS classes
    style: str = ""


def text(value: object) -> str:
    """What may stand anywhere in a page, whatever characters it holds."""
    return escape(" ".join(str(value).split()))


def table(heads: Sequence[Cell], rows: Iterable[tuple[str, Sequence[Cell]]]) -> str:
    """A table that scrolls sideways where it is wide; a row is its CSS class and its cells."""
    head = "".join(_cell("th", cell) for cell in heads)
    body = "".join(
        f"<tr{_attribute('class', kind)}>{''.join(_cell('td', cell) for cell in cells)}</tr>\n" for kind, cells in rows
    )
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n'


def picture(content: bytes, kind: str, *, caption: str) -> str:
    """A picture that the page holds itself; `kind` is svg+xml or png, the caption is plain text."""
    data = base64.b64encode(content).decode("ascii")
    alternative = text(caption.split(". ")[0])
    return (
        f'<figure><img alt="{alternative}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{text(caption)}</figcaption></figure>\n"
    )


def definitions(meanings: Mapping[str, str]) -> str:
    """A list of words and what they mean, both plain text."""
    entries = "".join(f"<dt>{text(word)}</dt><dd>{text(meaning)}</dd>\n" for word, meaning in meanings.items())
    return f"<dl>\n{entries}</dl>\n"


def _cell(tag: str, cell: Cell) -> str:
    return f"<{tag}{_attribute('class', cell.kind)}{_attribute('style', cell.style)}>{cell.html}</{tag}>"


def _attribute(name: str, value: str) -> str:
    return f' {name}="{value}"' if value else ""
