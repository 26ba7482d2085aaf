"""The importance of settings."""

from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.figures.importances import parameter_importances
from tests.support.figures import margins, render, title
from tests.support.studies import table

ARGUMENTS: dict[str, Any] = {"metric": "val_accuracy", "needed": 4}
EIGHT = table(
    *[("complete", value) for value in (0.5, 0.6, 0.7, 0.8)],
    ("duplicate", 0.8),
    ("pruned", 0.4),
    ("infeasible", np.nan),
    ("infeasible", np.nan),
)


def test_parameter_importances_draw_both_methods_with_the_largest_share_on_top() -> None:
    fanova, ped_anova = {"depth": 0.25, "patch_size": 0.75}, {"depth": 0.9, "patch_size": 0.1}
    axes = parameter_importances(fanova, ped_anova, EIGHT, **ARGUMENTS).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["patch_size", "depth"]
    assert axes.yaxis_inverted()
    assert [text.get_text() for text in axes.texts] == ["75.0 %", "25.0 %", "10.0 %", "90.0 %"]
    methods = [text.get_text() for text in axes.get_legend().get_texts()]
    assert methods[0].startswith("fANOVA") and methods[1].startswith("PED-ANOVA, as in optuna-dashboard")


def test_parameter_importances_say_how_many_trials_they_are_of_and_which_are_left_out() -> None:
    figure = parameter_importances({"depth": 1.0}, {"depth": 1.0}, EIGHT, subject="digits, search mine", **ARGUMENTS)
    assert "Importance of settings: digits, search mine" in title(figure)
    assert "estimated from 5 finished trials" in title(figure)
    assert "left out: 1 pruned, 2 infeasible" in title(figure)
    assert min(margins(figure)) > 5


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "needs 4 finished trials of different values, there are 0"),
        (1, "needs 4 finished trials of different values, there is 1"),
        (4, "needs 2 searched settings, there is 1"),
    ],
)
def test_parameter_importances_of_too_few_trials_say_how_many_are_needed(number: int, expected: str) -> None:
    assert expected in title(parameter_importances({}, {}, EIGHT[:number], **ARGUMENTS))


def test_parameter_importances_that_are_not_finite_are_none() -> None:
    render(parameter_importances({"depth": np.nan}, {}, EIGHT, **ARGUMENTS))
