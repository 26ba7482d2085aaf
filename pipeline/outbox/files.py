"""What puts the files of a record into its folder."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.outbox.record import Fill

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def text(path: str, content: str) -> Fill:
    """A file of text, in UTF-8."""

    def fill(folder: Path) -> None:
        _place(folder, path).write_text(content, encoding="utf-8")

    return fill


def copy(path: str, source: Path) -> Fill:
    """A file as another one is now."""

    def fill(folder: Path) -> None:
        shutil.copyfile(source, _place(folder, path))

    return fill


def figure(path: str, drawn: "Figure") -> Fill:
    """A picture, in the format that its name ends with."""
    return lambda folder: drawn.savefig(_place(folder, path))


def _place(folder: Path, path: str) -> Path:
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    return place
