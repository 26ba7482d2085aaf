"""File names, class names and foreign messages as text that is safe to print on one line."""

from collections.abc import Collection

LISTED = 5  # names in a message; the others are counted
LONGEST = 2000  # characters of a line


def printable(text: object) -> str:
    r"""`text` with every character that cannot be seen (newline, escape, undecodable byte) written as in `\\n`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def one_line(text: object, *, most: int = LONGEST) -> str:
    """`text`, printable; one of more characters than `most` loses its middle, as the ends tell what was wrong."""
    line = printable(text)
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-(most // 2) :]}"


def listed(names: Collection[object]) -> str:
    """Give the first few names, printable and with commas, and how many more there are."""
    shown = ", ".join(printable(name) for name in list(names)[:LISTED])
    return f"{shown} and {len(names) - LISTED:,} more" if len(names) > LISTED else shown
