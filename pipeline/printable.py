"""File names, class names and foreign messages as text that is safe to print on one line."""

from collections.abc import Collection

LISTED = 5  # names in a message; the others are counted


def printable(text: object) -> str:
    r"""`text` with every character that cannot be seen (newline, escape, undecodable byte) written as in `\\n`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def listed(names: Collection[object]) -> str:
    """Give the first few names, printable and with commas, and how many more there are."""
    shown = ", ".join(printable(name) for name in list(names)[:LISTED])
    return f"{shown} and {len(names) - LISTED:,} more" if len(names) > LISTED else shown
