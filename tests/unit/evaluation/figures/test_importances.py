"""The importance of settings."""

import numpy as np

from pipeline.evaluation.figures.importances import parameter_importances
from tests.support.figures import render, title


def test_parameter_importances_put_the_largest_share_on_top() -> None:
    axes = parameter_importances({"depth": 0.25, "patch_size": 0.75}, metric="val_accuracy").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["patch_size", "depth"]
    assert axes.yaxis_inverted()
    assert [text.get_text() for text in axes.texts] == ["75.0 %", "25.0 %"]


def test_parameter_importances_of_too_few_trials_are_a_text() -> None:
    assert "Not enough trials" in title(parameter_importances({}, metric="val_accuracy"))
    render(parameter_importances({"depth": np.nan}, metric="val_accuracy"))
