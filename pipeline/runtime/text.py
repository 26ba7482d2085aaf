"""Text for messages: foreign text on one line, lists of names, values, counts and durations."""

from collections.abc import Collection, Iterable, Mapping
from numbers import Real
from typing import TypeGuard

MAX_NAMES = 5  # in a message; the others are counted
MAX_CHARACTERS = 2000  # of a line


def printable(text: object) -> str:
    r"""Return text with each unprintable character (newline, escape, undecodable byte) written as in `\\n`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def one_line(text: object, *, most: int = MAX_CHARACTERS) -> str:
    """Return printable text; of more than `most` characters the middle is left out, as the ends say what was wrong."""
    line = printable(text)
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-(most // 2) :]}"


def join_names(names: Collection[object]) -> str:
    """Return the first few names, printable and with commas, and how many more there are."""
    shown = ", ".join(printable(name) for name in list(names)[:MAX_NAMES])
    return f"{shown} and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else shown


PAPER = {"kernel_size": "k", "patch_size": "p", "depth": "d", "filters": "h"}  # https://arxiv.org/abs/2201.09792


def trial_name(number: int, settings: Mapping[str, object]) -> str:
    """Return the number of a trial, so that names sort, and its settings: `t007 k9 d8`."""
    return f"t{number:03d} {short_settings(settings)}".rstrip()


def short_settings(settings: Mapping[str, object]) -> str:
    """Return numbers after the paper's letter or the initials of their names, and words as they are: `k9 flip=true`.

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
    """Return a value as a search file spells it: `9` (also if a table made it 9.0), `0.0312`, `true`, `none`."""
    # a table turns None into NaN
    if value is None or value != value:
        return "none"
    if _is_number(value):
        number = float(value)
        return f"{number:.0f}" if number.is_integer() and abs(number) < 1e9 else f"{number:.3g}"
    return str(value).lower() if _is_bool(value) else str(value)


def _is_number(value: object) -> TypeGuard[Real]:
    return isinstance(value, Real) and not _is_bool(value)


def _is_bool(value: object) -> bool:
    # NumPy's type has the same name
    return type(value).__name__ == "bool"


def shown(value: object, *, most: int = 80) -> str:
    """Return a value as Python writes it, on one line and cut after `most` characters."""
    try:
        text = repr(value)
    except ValueError:
        # Python writes no number of more than 4300 digits
        text = "a number that is too long to be written"
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


# what other programs call a setting
SYNONYMS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "batch": "batch_size",
    "width": "filters",
    "dim": "filters",
    "hidden_dim": "filters",
    "layers": "depth",
    "blocks": "depth",
    "augment": "randaugment_layers",
    "augmentation": "randaugment_layers",
    "randaugment": "randaugment_layers",
    "patience": "early_stopping_epochs",
    "momentum": "batch_norm_momentum",
    "resolution": "image_size",
    "data": "dataset",
    "data_dir": "dataset",
}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean depth?`, or nothing if no known name is similar."""
    # imported here, as `--help` has to be fast
    import difflib

    names = list(known)
    meant = SYNONYMS.get(name.lower())
    found = [meant] if meant in names else difflib.get_close_matches(name[:100], names, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 epoch`, `1,024 epochs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(fraction: float) -> str:
    """Return a fraction in per cent: 0.813 as `81.3 %`, 0.9996 as `99.96 %`, as only 1 is 100.0 %."""
    for digits in (1, 2, 3):
        text = f"{100 * fraction:.{digits}f} %"
        if fraction >= 1 or not float(text[:-2]) >= 100:
            return text
    return "100.0 %"


def is_share(metric: str) -> bool:
    """Return whether a metric is a share of the images, which is written in per cent and is 1 at best."""
    return any(word in metric for word in ("accuracy", "f1", "recall"))


def format_metric(metric: str, value: float, deviation: float | None = None) -> str:
    """Return a value of a metric, with its standard deviation: `81.30 %`, `81.30 ± 0.41 %`, or a loss as `0.6123`."""
    plus_minus = "" if deviation is None else f" ± {format_bare(metric, deviation)}"
    return f"{format_bare(metric, value)}{plus_minus}{' %' if is_share(metric) else ''}"


def format_bare(metric: str, value: float, flag: str = "") -> str:
    """Return a value of a metric without its unit: `81.30` of per cent, or `0.6123`; with flag + also its sign."""
    return f"{100 * value:{flag}.2f}" if is_share(metric) else f"{value:{flag}.4f}"


def format_share(value: float) -> str:
    """Return a share in per cent, as those of metrics are: `81.30 %`."""
    return format_metric("accuracy", value)


def format_duration(seconds: float) -> str:
    """Return a duration: `40 s`, `12 min` or `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
