"""The base class of settings: reading text, and the message for a value that breaks its rule."""

from typing import Literal

import pytest
from pydantic import Field

from pipeline.config.base import Config, metavar
from pipeline.runtime.errors import UsageError


class Some(Config):
    count: int = Field(3, ge=1, le=9)
    rate: float = Field(0.1, gt=0, lt=1)
    limit: int | None = Field(None, ge=1)
    kind: Literal["red", "blue"] = "red"
    on: bool = False
    mode: bool | Literal["auto"] = "auto"
    size: tuple[int, int] | None = None
    path: str = "a"
    colours: tuple[Literal["red", "blue", "green"], ...] = Field(("red",), min_length=1, max_length=2)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", "7", 7),
        ("rate", "1e-3", 0.001),
        ("count", "07", 7),
        ("limit", "none", None),
        ("limit", "null", None),
        ("limit", "~", None),
        ("limit", " 5 ", 5),
        ("on", "true", True),
        ("on", "False", False),
        ("mode", "auto", "auto"),
        ("mode", "false", False),
        ("size", "24,32", (24, 32)),
        ("size", "[24, 32]", (24, 32)),
        ("size", "32", (32, 32)),
        ("size", 32, (32, 32)),
        ("size", [24, 32], (24, 32)),
        ("size", "none", None),
        ("path", "none", "none"),
        ("colours", "blue", ("blue",)),
        ("colours", "blue, red", ("blue", "red")),
        ("colours", ["blue", "red"], ("blue", "red")),
        ("path", "a,b 'c'", "a,b 'c'"),
    ],
)
def test_build_reads_text(name, text, value):
    assert getattr(Some.build({name: text}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", 0, "count must be a whole number from 1 to 9, got 0"),
        ("count", "10", "count must be a whole number from 1 to 9, got '10'"),
        ("count", True, "count must be a whole number from 1 to 9, got True"),
        ("count", 2.5, "count must be a whole number from 1 to 9, got 2.5"),
        ("count", None, "count must be a whole number from 1 to 9, got None"),
        ("rate", "nan", "rate must be a number above 0 to below 1, got 'nan'"),
        ("rate", float("inf"), "rate must be a number above 0 to below 1, got inf"),
        ("rate", "1e400", "rate must be a number above 0 to below 1, got '1e400'"),
        ("rate", "", "rate must be a number above 0 to below 1, got ''"),
        ("limit", "nothing", "limit must be a whole number from 1 or none, got 'nothing'"),
        ("kind", "green", "kind must be red or blue, got 'green'"),
        ("mode", "maybe", "mode must be true, false or auto, got 'maybe'"),
        ("size", "1,2,3", "size must be height,width (each a whole number), one number for both or none, got '1,2,3'"),
        *(
            (
                "colours",
                value,
                f"colours must be up to 2 of red, blue, green, each once, with commas between, got {value!r}",
            )
            for value in ("pink", "red,blue,green", "red,red", ["red", "red"], [], "", None)
        ),
    ],
)
def test_build_refuses_a_value_with_the_rule_of_its_setting(name, value, message):
    with pytest.raises(UsageError) as refused:
        Some.build({name: value})
    assert str(refused.value) == message


def test_build_reports_all_invalid_values_in_one_line():
    with pytest.raises(UsageError) as refused:
        Some.build({"count": 0, "kind": "green"})
    assert (
        str(refused.value) == "count must be a whole number from 1 to 9, got 0; kind must be red or blue, got 'green'"
    )


def test_build_refuses_an_unknown_name_with_the_nearest():
    with pytest.raises(UsageError, match=r"^unknown setting 'cuont'; did you mean count\?; --help lists all$"):
        Some.build({"cuont": 1})


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("kind", "blu", "blue"),
        ("colours", "red,gren", "green"),
        ("colours", ["grean"], "green"),
        ("mode", "Auto", "auto"),
    ],
)
def test_build_refuses_a_named_value_with_the_nearest(name, value, meant):
    with pytest.raises(UsageError) as refused:
        Some.build({name: value})
    assert str(refused.value).endswith(f", got {value!r}; did you mean {meant}?")


def test_build_cuts_a_huge_value_short_in_its_message():
    with pytest.raises(UsageError) as refused:
        Some.build({"kind": "x\n" * 5_000_000})
    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)


def test_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Some.build({}).count = 4


def test_text_of_a_value_is_read_back_as_the_same_value():
    some = Some.build({"rate": 0.00025, "size": (24, 32), "mode": True, "limit": None, "colours": "blue,red"})
    assert Some.build({name: some.text(name) for name in Some.model_fields}) == some
    typed = [some.text(name) for name in ("rate", "size", "mode", "limit", "colours")]
    assert typed == ["0.00025", "24,32", "true", "none", "blue,red"]


def test_metavar_is_the_kind_of_value():
    metavars = {name: metavar(field) for name, field in Some.model_fields.items()}
    assert metavars == {
        "count": "INT",
        "rate": "FLOAT",
        "limit": "INT",
        "kind": "NAME",
        "on": "BOOL",
        "mode": "BOOL",
        "size": "H,W",
        "path": "TEXT",
        "colours": "NAME,...",
    }
