"""Text for messages: foreign text, names, values, counts and durations."""

import numpy as np
import pytest

from pipeline.runtime.text import (
    MAX_CHARACTERS,
    count,
    format_duration,
    format_metric,
    format_share,
    format_value,
    join_names,
    nearest,
    one_line,
    percent,
    printable,
    short_settings,
    shown,
    trial_name,
)


def test_trial_name_has_the_papers_letters_and_sorts_by_number() -> None:
    assert trial_name(7, {"kernel_size": 9, "patch_size": 2, "depth": 8}) == "t007 k9 p2 d8"
    assert trial_name(7, {}) == "t007"


def test_short_settings_are_initials_unless_two_names_share_them() -> None:
    assert short_settings({"learning_rate": 1e-3, "filters": 256}) == "lr0.001 h256"
    assert short_settings({"batch_size": 8, "brightness_shift": 0.2}) == "batch_size=8 brightness_shift=0.2"
    assert short_settings({"flip": True, "optimizer": "adamw"}) == "flip=true optimizer=adamw"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9.0, "9"),  # a table with a gap made it a float
        (np.int64(1024), "1024"),
        (0.031249, "0.0312"),
        (1e-5, "1e-05"),
        (np.True_, "true"),
        (None, "none"),
        (float("nan"), "none"),
        (float("inf"), "inf"),
    ],
)
def test_format_value_undoes_what_a_table_makes_of_a_value(value: object, text: str) -> None:
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40 s"), (89.6, "90 s"), (720, "12 min"), (5399, "1 h 30 min"), (12_000, "3 h 20 min")]
)
def test_format_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb\x1b[31m", r"a\nb\x1b[31m"),
        ("caf\udce9", r"caf\udce9"),
        ("日本 é", "日本 é"),
        (ValueError("a\tb"), r"a\tb"),
    ],
)
def test_printable_escapes_what_cannot_be_seen(text: object, line: str) -> None:
    assert printable(text) == one_line(text) == line


def test_one_line_leaves_out_the_middle_of_long_text() -> None:
    line = one_line("a" * 3000 + "b" * 3000)
    assert line.startswith("a" * 1000 + " ... ") and line.endswith("b" * 1000)
    assert len(line) == MAX_CHARACTERS + len(" ... ")
    assert one_line("abcdef", most=4) == "ab ... ef"


def test_join_names_counts_those_after_the_fifth() -> None:
    assert join_names(["a", "b\n"]) == r"a, b\n"
    assert join_names(range(5)) == "0, 1, 2, 3, 4"
    assert join_names(range(1007)) == "0, 1, 2, 3, 4 and 1,002 more"


def test_shown_is_a_value_as_python_writes_it_cut_short() -> None:
    assert shown("a\n'") == repr("a\n'")
    assert shown("x" * 100) == f"'{'x' * 79}... (102 characters)"
    assert shown(10**5000) == "a number that is too long to be written"


def test_nearest_suggests_a_similar_name_or_nothing() -> None:
    assert nearest("dpeth", ["depth", "filters"]) == "; did you mean depth?"
    assert nearest("q", ["depth", "filters"]) == ""
    assert nearest("lr", ["depth", "learning_rate"]) == "; did you mean learning_rate?"
    assert nearest("lr", ["depth"]) == "", "what another program calls it is no setting here"
    assert nearest("depth" * 10**6, ["depth"]) in {"", "; did you mean depth?"}, "it takes no time"


def test_count_and_percent_have_their_units() -> None:
    assert [count(number, "epoch") for number in (0, 1, 1024)] == ["0 epochs", "1 epoch", "1,024 epochs"]
    assert percent(0.813) == "81.3 %"


def test_percent_rounds_no_fraction_up_to_100() -> None:
    shown = [percent(fraction) for fraction in (0.9994, 0.9996, 0.99997, 1.0, 0.0)]
    assert shown == ["99.9 %", "99.96 %", "99.997 %", "100.0 %", "0.0 %"]
    assert percent(float("nan")) == "nan %"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("val_accuracy", 0.8), "80.00 %"),
        (("test_accuracy", 0.99996), "100.00 %"),
        (("val_accuracy", 0.82, 0.0204), "82.00 ± 2.04 %"),
        (("val_loss", 0.61234), "0.6123"),
        (("val_loss", 1.0, 0.5), "1.0000 ± 0.5000"),
    ],
)
def test_format_metric_shows_accuracies_in_percent(arguments, text) -> None:
    assert format_metric(*arguments) == text


def test_format_share_is_in_percent_as_accuracies_are() -> None:
    assert (format_share(0.81304), format_share(1)) == ("81.30 %", "100.00 %")
