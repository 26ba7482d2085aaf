"""What a trial is called wherever it is listed or drawn: `t007 k9 p2 d8`."""

from collections.abc import Mapping
from numbers import Real
from typing import TypeGuard

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
        f"{name}={plain(value)}" if name in shared or not _is_number(value) else f"{letters[name]}{plain(value)}"
        for name, value in settings.items()
    )


def plain(value: object) -> str:
    """A setting's value as a search file spells it: `9` (also when a table made it 9.0), `0.0312`, `true`, `none`."""
    if value is None or value != value:  # NaN is what a table makes of None
        return "none"
    if _is_number(value):
        number = float(value)
        return f"{number:.0f}" if number.is_integer() and abs(number) < 1e9 else f"{number:.3g}"
    return str(value).lower() if type(value).__name__ == "bool" else str(value)  # NumPy's bool too


def _is_number(value: object) -> TypeGuard[Real]:
    return isinstance(value, Real) and type(value).__name__ != "bool"
