"""The command line: flags of settings, their help, and the one-line refusals."""

from typing import Literal

import pytest
from pydantic import Field

from pipeline.config.arguments import parse_arguments, parse_with_positional, take_experiment
from pipeline.config.base import Config
from pipeline.runtime.errors import UsageError


class Colours(Config, title="colours"):
    red: int = Field(3, ge=1, le=9, description="how red")
    bright: bool = Field(False, description="100% bright; not dark")


class Paint(Colours, title="paint"):
    drying_hours: float | None = Field(None, gt=0, le=99, description="hours until it is dry")
    finish: Literal["matt", "gloss"] = Field("matt", description="the finish")


def parse(*arguments, **more):
    return parse_arguments(arguments, command="paint", description="Paint it.", settings=Paint.build({}), **more)


def refusal(*arguments, **more):
    with pytest.raises(UsageError) as refused:
        parse(*arguments, **more)
    return str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ((), {}),
        (("--red", "4"), {"red": "4"}),
        (("--red=4",), {"red": "4"}),
        (("--red", "-4"), {"red": "-4"}),
        (("--red=",), {"red": ""}),
        (("--drying-hours", "2"), {"drying_hours": "2"}),
        (("--drying_hours=1e-3=x",), {"drying_hours": "1e-3=x"}),
        (("--bright",), {"bright": "true"}),
        (("--bright", "--red", "4"), {"bright": "true", "red": "4"}),
        (("--bright", "false"), {"bright": "false"}),
    ],
)
def test_parse_arguments_returns_only_what_was_given_as_text(arguments, given):
    assert parse(*arguments) == given


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--re", "4"), "unknown setting 're'; did you mean red?; --help lists all"),
        (("--drying-hour=4",), "unknown setting 'drying_hour'; did you mean drying_hours?; --help lists all"),
        (("-r", "4"), "unknown setting 'r'"),
        (("--red", "4", "--red=5"), "a setting is given once, got --red 2 times"),
        (("--red",), "--red needs a value: a whole number from 1 to 9"),
        (("--red", "--bright"), "--red needs a value: a whole number from 1 to 9"),
        (("more",), "settings are given as --name value, got 'more'"),
        (("--red", "4", "more"), "settings are given as --name value, got 'more'"),
        (("--",), "settings are given as --name value, got '--'"),
        (("-h3",), "settings are given as --name value, got '-h3'"),
        (("--again",), "unknown setting 'again'"),
    ],
)
def test_parse_arguments_refuses_in_one_line(arguments, message):
    assert refusal(*arguments).startswith(message)


def test_parse_arguments_takes_other_flags_that_need_a_value():
    flags = {"again": ("RUN", "the run")}
    assert parse("--again", "x", other_flags=flags) == {"again": "x"}
    assert refusal("--again", other_flags=flags) == "--again needs a value"


def test_parse_arguments_takes_a_positional_in_the_first_place_only():
    positional = ("wall", "which wall")
    assert parse("north", "--red", "4", positional=positional) == {"wall": "north", "red": "4"}
    assert refusal("--red", "4", "north", positional=positional).endswith("got 'north'")
    assert refusal("north", "south", positional=positional).endswith("got 'south'")


@pytest.mark.parametrize("arguments", [(), ("",), ("--red", "4"), ("-1",)])
def test_parse_with_positional_refuses_a_command_line_without_a_first_word(arguments):
    with pytest.raises(UsageError, match="^name the wall first: which wall$"):
        parse_with_positional(
            arguments,
            command="paint",
            description="",
            settings=Paint.build({}),
            positional=("wall", "which wall"),
        )


def test_help_groups_the_settings_by_section_and_shows_the_values_that_hold(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        parse_arguments(
            ["--help"],
            command="paint",
            description="Paint it.\n\nexample:\n  convmixer paint north",
            settings=Paint.build({"red": 5}),
            origin="mine",
            positional=("wall", "which wall"),
        )
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: convmixer paint WALL [--setting value ...]\n\nPaint it.\n\nexample:\n  convmixer")
    assert text.index("colours:") < text.index("--red INT") < text.index("paint:") < text.index("--drying_hours FLOAT")
    assert "how red; a whole number from 1 to 9 (mine: 5)" in text
    assert "100% bright; not dark; true or false (mine: false)" in text


@pytest.mark.parametrize("arguments", [["--experiment", "mine"], ["--experiment=mine"]])
def test_take_experiment_separates_the_flag_from_the_others(arguments):
    assert take_experiment(["digits", *arguments, "--red", "4"]) == (["digits", "--red", "4"], "mine")
    assert take_experiment(["digits", "--red=--4"]) == (["digits", "--red=--4"], None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiment"], "^--experiment needs a value: the name of an experiment$"),
        (["--experiment", "--red", "4"], "^--experiment needs a value"),
        (["--experiment=a", "--experiment=b"], "^a setting is given once, got --experiment 2 times$"),
    ],
)
def test_take_experiment_refuses_a_flag_without_a_value_or_given_twice(arguments, message):
    with pytest.raises(UsageError, match=message):
        take_experiment(arguments)
