"""Class names from folders and arrays -> the names that are recorded, of which no two are equal."""

import logging
import unicodedata
from collections.abc import Iterable

from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import join_names, printable

SPACES = " \t\N{NO-BREAK SPACE}\N{FIGURE SPACE}\N{NARROW NO-BREAK SPACE}\N{IDEOGRAPHIC SPACE}"

log = logging.getLogger(__name__)


def clean_class_name(name: str) -> str:
    """Return a name as it is recorded: composed (Unicode NFC), without spaces around it, on one printable line.

    A folder's name is decomposed when it was packed on a Mac; a trailing space cannot be seen.
    """
    return printable(unicodedata.normalize("NFC", name).strip(SPACES))


def clean_class_names(names: Iterable[str], *, place: object) -> dict[str, str]:
    """Return the names as given by the names that are recorded, in the order of the latter.

    Args:
        names: As given.
        place: What holds them, for messages.

    Raises:
        UsageError: Two names become one, or one becomes empty.
    """
    cleaned: dict[str, str] = {}
    for name in names:
        clean = clean_class_name(name)
        if not clean:
            raise UsageError(f"a class needs a name that can be seen, got {name!a} in {printable(place)}")
        if clean in cleaned:
            raise UsageError(
                "class names must differ in more than spaces around them, Unicode form and unprintable characters: "
                f"{cleaned[clean]!a} and {name!a} in {printable(place)} are both {clean}; "
                "rename one, or join them"
            )
        cleaned[clean] = name
    folded: dict[str, list[str]] = {}
    for clean in cleaned:
        folded.setdefault(clean.casefold(), []).append(clean)
    if alike := [", ".join(sorted(same)) for same in folded.values() if len(same) > 1]:
        log.warning("%s has classes whose names differ by case alone: %s", printable(place), join_names(alike))
    return {clean: cleaned[clean] for clean in sorted(cleaned)}
