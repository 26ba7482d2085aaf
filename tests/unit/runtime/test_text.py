"""What trials are called."""

import numpy as np
import pytest

from pipeline.runtime.text import format_duration, format_value, short_settings, trial_name


def test_a_name_has_the_papers_letters_and_sorts_by_number() -> None:
    assert trial_name(7, {"kernel_size": 9, "patch_size": 2, "depth": 8}) == "t007 k9 p2 d8"
    assert trial_name(7, {}) == "t007"


def test_other_settings_have_their_initials_unless_two_would_share_them_and_words_are_written_out() -> None:
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
def test_a_value_that_went_through_a_table_is_written_as_it_went_in(value: object, text: str) -> None:
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40 s"), (89.6, "90 s"), (720, "12 min"), (5399, "1 h 30 min"), (12_000, "3 h 20 min")]
)
def test_a_duration_is_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
