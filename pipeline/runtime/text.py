"""File names, class names and foreign messages as text that is safe to print on one line."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from numbers import Real
from typing import TypeGuard

LISTED = 5  # names in a message; the others are counted
LONGEST = 2000  # characters of a line


def printable(text: object) -> str:
    r"""`text` with every character that cannot be seen (newline, escape, undecodable byte) written as in `\\n`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def one_line(text: object, *, most: int = LONGEST) -> str:
    """`text`, printable; one of more characters than `most` loses its middle, as the ends tell what was wrong."""
    line = printable(text)
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-(most // 2) :]}"


def join_names(names: Collection[object]) -> str:
    """Give the first few names, printable and with commas, and how many more there are."""
    shown = ", ".join(printable(name) for name in list(names)[:LISTED])
    return f"{shown} and {len(names) - LISTED:,} more" if len(names) > LISTED else shown


PAPER = {"kernel_size": "k", "patch_size": "p", "depth": "d", "filters": "h"}  # https://arxiv.org/abs/2201.09792


def trial_name(number: int, settings: Mapping[str, object]) -> str:
    """The number, so that names sort, and the settings."""
    return f"t{number:03d} {short_settings(settings)}".rstrip()


def short_settings(settings: Mapping[str, object]) -> str:
    """Numbers behind the paper's letter or the initials of a name (`k9 lr0.001`), words as `flip=true`.

    Names that would share their letters are written out.
    """
    letters = {name: PAPER.get(name, "".join(word[0] for word in name.split("_") if word)) for name in settings}
    shared = {name for name in settings if list(letters.values()).count(letters[name]) > 1}
    return " ".join(
        f"{name}={format_value(value)}"
        if name in shared or not _is_number(value)
        else f"{letters[name]}{format_value(value)}"
        for name, value in settings.items()
    )


def format_value(value: object) -> str:
    """A setting's value as a search file spells it: `9` (also when a table made it 9.0), `0.0312`, `true`, `none`."""
    if value is None or value != value:  # NaN is what a table makes of None
        return "none"
    if _is_number(value):
        number = float(value)
        return f"{number:.0f}" if number.is_integer() and abs(number) < 1e9 else f"{number:.3g}"
    return str(value).lower() if type(value).__name__ == "bool" else str(value)  # NumPy's bool too


def _is_number(value: object) -> TypeGuard[Real]:
    return isinstance(value, Real) and type(value).__name__ != "bool"


def shown(value: object, *, most: int = 80) -> str:
    """A value as it came, on one line and at most so many characters of it."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        text = "a number that is too long to be written"
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean depth?`, or nothing where no known name is near."""
    found = difflib.get_close_matches(name[:100], list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def count(number: int, noun: str) -> str:
    """`1 epoch`, `1,024 epochs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(fraction: float) -> str:
    """`81.3 %`, as 0.813 is written."""
    return f"{100 * fraction:.1f} %"


def format_duration(seconds: float) -> str:
    """`40 s`, `12 min` or `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
