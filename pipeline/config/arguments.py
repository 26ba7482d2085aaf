"""The command line of a command: one flag for each setting, whose value is read as the text that a recipe may hold."""

import argparse
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import NoReturn

from pipeline.config.base import Config, metavar
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import shown

# what argparse reports as the value of a flag that was given none; no command line can hold it
NO_VALUE = "\0"
# of every command: `take_experiment` has read it before the command reads its own
EXPERIMENT_FLAG = (
    "experiment",
    "NAME",
    "MLflow's experiment, made if needed; none: as MLFLOW_EXPERIMENT_NAME or Default",
)
# Of train and search. They are no settings, which are stored with the run: an address may be a secret, and a command
# that a resumed run has brought along would be run.
NOTIFY_FLAGS = {
    "notify_url": (
        "URL",
        "webhook that is told how the run or the search goes, in Slack's form; better given as "
        "CONVMIXER_NOTIFY_URL, as other users of the machine see the command line; none: nobody",
    ),
    "notify_command": (
        "COMMAND",
        "program that gets the same on standard input, a line of JSON; or CONVMIXER_NOTIFY_COMMAND; none: nothing",
    ),
}


def parse_arguments(
    arguments: Sequence[str],
    *,
    command: str,
    description: str,
    settings: Config,
    origin: str = "default",
    positional: tuple[str, str] | None = None,
    other_flags: Mapping[str, tuple[str, str]] | None = None,
) -> dict[str, str]:
    """Return what the command line gives, by name, as unchecked text. `--help` prints the help and exits with 0.

    Args:
        arguments: the words after the command's name.
        command: its name.
        description: the text of the help above the flags.
        settings: the values that hold where no flag is given, shown in the help.
        origin: where these come from, as a word for the help.
        positional: name and help of the one word that is no flag; it is the first one, and may be missing.
        other_flags: flags that are no settings: the kind of value and the help of each, by name.

    Raises:
        UsageError: an unknown flag, a flag without its value or given twice, or a second word.
    """
    parser = _Parser(
        prog=f"convmixer {command}",
        usage=f"convmixer {command} {f'{positional[0].upper()} ' if positional else ''}[--setting value ...]",
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    if positional:
        name, help_text = positional
        parser.add_argument(name, nargs="?", metavar=name.upper(), help=_escape(help_text))
    for flag, (kind, help_text) in (other_flags or {}).items():
        _add_flag(parser, flag, kind, help_text)
    _add_flag(parser, *EXPERIMENT_FLAG)
    for title, names in settings.sections().items():
        group = parser.add_argument_group(title)
        for flag in names:
            field = type(settings).model_fields[flag]
            help_text = f"{field.description}; {settings.rule(flag)} ({origin}: {settings.text(flag)})"
            _add_flag(group, flag, metavar(field), help_text)

    # --learning-rate is --learning_rate
    words = [re.sub("^--[^=]+", _underscored, word) for word in arguments]
    # Since Python 3.13 argparse takes -h3 for -h
    if joined := [word for word in words if re.match("-h.", word, re.DOTALL)]:
        raise UsageError(f"settings are given as --name value, got {shown(joined[0])}")
    given, rest = parser.parse_known_args(words)
    # argparse takes the positional at any place, and passes over a bare --
    if positional and words and (word := getattr(given, positional[0])) not in {None, words[0]}:
        rest.append(word)
    rest += [word for word in words if word == "--"]
    for word in rest:
        name = word.lstrip("-").split("=")[0]
        if word.startswith("-") and name:
            settings.check_names([name])
        raise UsageError(f"settings are given as --name value, got {shown(word)}")
    values = {name: value for name, value in vars(given).items() if value is not None}
    return {name: value if isinstance(value, str) else _only(name, value, settings) for name, value in values.items()}


def take_notify_flags(given: dict[str, str]) -> dict[str, str]:
    """Remove the flags of NOTIFY_FLAGS from what `parse_arguments` has returned, and return them."""
    return {name: given.pop(name) for name in NOTIFY_FLAGS if name in given}


def take_experiment(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the words of a command line without --experiment and its value, and that value or None.

    Raises:
        UsageError: the flag has no value, or is given twice.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    _add_flag(parser, *EXPERIMENT_FLAG)
    given, rest = parser.parse_known_args(arguments)
    values = given.experiment or []
    if len(values) > 1:
        raise UsageError(f"a setting is given once, got --experiment {len(values)} times")
    if NO_VALUE in values:
        raise UsageError("--experiment needs a value: the name of an experiment")
    return rest, next(iter(values), None)


def parse_with_positional(
    arguments: Sequence[str],
    *,
    command: str,
    description: str,
    settings: Config,
    positional: tuple[str, str],
    origin: str = "default",
    other_flags: Mapping[str, tuple[str, str]] | None = None,
) -> tuple[str, dict[str, str]]:
    """Return the first word, which must be given, and the flags after it, as `parse_arguments` returns them.

    Raises:
        UsageError: the word is missing or is not the first, or as `parse_arguments` does.
    """
    given = parse_arguments(
        arguments,
        command=command,
        description=description,
        settings=settings,
        positional=positional,
        origin=origin,
        other_flags=other_flags,
    )
    name, help_text = positional
    word = given.pop(name, "").strip()
    if not word or word.startswith("-"):
        raise UsageError(f"name the {name} first: {help_text}")
    return word, given


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise UsageError, where argparse would print the usage and exit."""
        raise UsageError(message)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help whose values are not in brackets, and whose lines are not broken at hyphens."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return str(action.metavar or default_metavar) if action.nargs == "?" else ""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def _add_flag(parser: argparse._ActionsContainer, flag: str, kind: str, help_text: str) -> None:
    # nargs="?" and "append", so that a missing value and a second one are refused in this program's words
    parser.add_argument(f"--{flag}", action="append", nargs="?", const=NO_VALUE, metavar=kind, help=_escape(help_text))


def _escape(help_text: str) -> str:
    """Return text in which argparse sees no `%(...)s`."""
    return help_text.replace("%", "%%")


def _underscored(found: re.Match[str]) -> str:
    return "--" + found[0][2:].replace("-", "_")


def _only(flag: str, values: list[str], settings: Config) -> str:
    """Return the value of a flag that was given once; a flag alone means true if that is a value, else is refused."""
    if len(values) > 1:
        raise UsageError(f"a setting is given once, got --{flag} {len(values)} times")
    if values[0] != NO_VALUE:
        return values[0]
    field = type(settings).model_fields.get(flag)
    if field is not None and metavar(field) == "BOOL":
        return "true"
    rule = f": {settings.rule(flag)}" if field is not None else ""
    raise UsageError(f"--{flag} needs a value{rule}")
