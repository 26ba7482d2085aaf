"""The lines of trials through their settings."""

from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from pipeline.evaluation.figures.parallel_coordinates import parallel_coordinates
from tests.support.figures import render
from tests.support.studies import MAXIMIZED, MINIMIZED, SIX, make_study, table


@pytest.mark.parametrize(("arguments", "best"), [(MAXIMIZED, 0.7), (MINIMIZED, 0.5)])
def test_parallel_coordinates_put_the_best_on_top_in_either_direction(arguments: dict[str, Any], best: float) -> None:
    axes = parallel_coordinates(SIX, **arguments).axes[0]
    (thick,) = (line for line in axes.lines if line.get_linewidth() == 2.5)
    assert thick.get_ydata()[-1] == 1
    written = {text.get_text().removesuffix(" %"): text.xy[1] for text in axes.texts if hasattr(text, "xy")}
    assert written[f"{100 * best:g}" if arguments is MAXIMIZED else f"{best:g}"] == pytest.approx(1)


def test_parallel_coordinates_draw_finished_trials_only_the_better_later() -> None:
    trials, _ = make_study(100)
    axes = parallel_coordinates(trials, **MAXIMIZED).axes[0]
    (others,) = (group for group in axes.collections if isinstance(group, LineCollection))
    ends = [segment[-1, 1] for segment in others.get_segments()]
    assert len(ends) == (trials["state"] == "complete").sum() - 1
    assert ends == sorted(ends)


def test_parallel_coordinates_colors_ignore_the_worst_tenth() -> None:
    good = [("complete", value) for value in np.linspace(0.7, 0.8, 20)]
    trials = table(("complete", 0.1), *good, params_depth=list(range(21)))
    figure = parallel_coordinates(trials, **MAXIMIZED)
    render(figure)
    (others,) = (group for group in figure.axes[0].collections if isinstance(group, LineCollection))
    brightness = others.get_colors()[:, :3].sum(axis=1)
    assert brightness[0] == pytest.approx(brightness[1], abs=0.05) and np.ptp(brightness[1:]) > 1
    assert len(figure.axes) == 1, "the axis of the metric says what a colour bar would"
