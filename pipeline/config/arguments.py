"""Flags from settings: one text flag each, whose help is the setting's meaning, rule and present value."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, TypedDict

import tyro

from pipeline.config.base import Config, metavar
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import shown

ALONE = "\0"  # what stands for the value of a flag that was given none; no command line can hold it


def parse(
    arguments: Sequence[str],
    *,
    program: str,
    description: str,
    settings: Config,
    of: str,
    positional: tuple[str, str] | None = None,
    others: Mapping[str, tuple[str, str]] | None = None,
) -> dict[str, str]:
    """What was typed, by name, as text: only what was given, not yet checked. `--help` prints and exits with 0.

    Args:
        positional: name and help of the one word that is no flag, if there is such a one; it need not be given.
        settings: the values that hold where no flag is given, shown in the help.
        of: whose values they are, as a word for the help.
        others: flags that are no settings: the kind of value and the help of each, by name.

    Raises:
        UsageError: an unknown flag or a second word.
    """
    flags = {}
    if positional:
        name, help_text = positional
        flags[name] = Annotated[_text(1, name.upper(), help_text, ""), tyro.conf.Positional]
    for flag, (kind, text) in (others or {}).items():
        flags[flag] = _text((0, 1), kind, text, "")
    for flag, field in type(settings).model_fields.items():
        hint = f"({of}: {settings.text(flag)})"
        flags[flag] = _text((0, 1), metavar(field), f"{field.description}; {settings.rule(flag)}", hint)
    typed_dict: Any = TypedDict  # type checkers want its names written out
    given, unknown = tyro.cli(
        typed_dict("Flags", flags, total=False),
        args=list(arguments),
        prog=program,
        description=description,
        use_underscores=True,
        return_unknown_args=True,
    )
    _refuse_twice(arguments)
    for word in [*unknown, *_strays(arguments)]:
        if word.startswith("-"):
            settings.refuse_unknown([word.lstrip("-").split("=")[0].replace("-", "_")])
        raise UsageError(f"settings are given as --name value, got {shown(word)}")
    return {flag: _given(flag, value, settings) for flag, value in given.items()}


def parse_after(
    name: str, what: str, arguments: Sequence[str], *, program: str, description: str, settings: Config
) -> tuple[str, dict[str, str]]:
    """A first word that must be given, and what was typed after it, as by `parse`.

    Args:
        name: the word's, as the help shows it.
        what: what the word says.
        settings: the defaults.

    Raises:
        UsageError: the word is missing or no first one, or as `parse` does.
    """
    given = parse(
        arguments, program=program, description=description, positional=(name, what), settings=settings, of="default"
    )
    word = given.pop(name, "").strip()
    if not word or word.startswith("--"):
        raise UsageError(f"name first the {name}: {what}")
    return word, given


def _refuse_twice(arguments: Sequence[str]) -> None:
    """Raise UsageError for a flag that is given more than once: which of the two was meant?"""
    flags = [word.split("=")[0] for word in arguments if word.startswith("--")]
    for flag in flags:
        if flags.count(flag) > 1:
            raise UsageError(f"a setting is given once, got {flag} {flags.count(flag)} times")


def _given(flag: str, value: str, settings: Config) -> str:
    """A flag alone means true where that is a value, and is refused where it is none."""
    if value != ALONE:
        return value
    field = type(settings).model_fields.get(flag)
    if field is not None and metavar(field) == "BOOL":
        return "true"
    rule = f": {settings.rule(flag)}" if field is not None else ""
    raise UsageError(f"--{flag} needs a value{rule}")


def _strays(arguments: Sequence[str]) -> Iterator[str]:
    """Words after the first that are no flag's value: of one behind a flag's value tyro says nothing."""
    for before, word in pairwise(arguments):
        if not word.startswith("-") and (not before.startswith("--") or "=" in before):
            yield word


def _text(words: int | tuple[int, ...], metavar: str, help_text: str, hint: str) -> Any:
    """A flag taken as it was typed. tyro's own reading refuses `true`, `none` and commas."""
    spec = tyro.constructors.PrimitiveConstructorSpec(
        nargs=words,
        metavar=metavar,
        instance_from_str=lambda typed: typed[0] if typed else ALONE,
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )
    return Annotated[str, spec, tyro.conf.arg(help=help_text, help_behavior_hint=hint)]
