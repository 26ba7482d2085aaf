"""The value of trials against a cost."""

import numpy as np
import pytest
from matplotlib.text import Text

from pipeline.evaluation.figures.value_vs_cost import value_vs_cost
from pipeline.evaluation.ranking import finished, pareto_front
from tests.support.figures import points, render, title
from tests.support.studies import ACCURACY, make_study, table


def test_value_vs_cost_names_the_front_by_the_settings_that_differ() -> None:
    trials = table(
        *[("complete", value) for value in (0.5, 0.7, 0.6, 0.8)],
        params_kernel_size=[3, 5, 7, 9],
        params_patch_size=[2, 2, 2, 2],
        params_depth=[4, 8, 8, 12],
        parameters=[100_000, 300_000, 400_000, 1_000_000],
    )
    axes = value_vs_cost(trials, **ACCURACY).axes[0]
    assert axes.get_xscale() == "log"
    assert points(axes, "Pareto front") == [
        [pytest.approx(size), value] for size, value in ((1e5, 0.5), (3e5, 0.7), (1e6, 0.8))
    ]
    assert [text.get_text() for text in axes.texts] == ["k3 d4", "k5 d8", "k9 d12"]


def test_value_vs_cost_names_members_with_long_settings_by_trial_number() -> None:
    trials, _ = make_study(12, every_kind=True)
    front = pareto_front(trials, direction="maximize", cost="parameters")
    axes = value_vs_cost(trials, **ACCURACY).axes[0]
    assert [text.get_text() for text in axes.texts] == [f"t{number:03d}" for number in front]


def test_value_vs_cost_names_more_than_six_members_by_trial_number() -> None:
    values, sizes = np.linspace(0.5, 0.8, 7), np.geomspace(1e5, 1e6, 7)
    trials = table(
        *[("complete", value) for value in values],
        params_depth=list(range(7)),
        parameters=list(sizes),
        latency_ms=[np.nan] * 6 + [2.0],
    )
    axes = value_vs_cost(trials, **ACCURACY).axes[0]
    assert [text.get_text() for text in axes.texts] == [*(f"t{number:03d}" for number in range(6)), "t006, 2 ms"]
    axes = value_vs_cost(trials[1:], **ACCURACY).axes[0]
    assert [text.get_text() for text in axes.texts] == [*(f"d{depth}" for depth in range(1, 6)), "d6, 2 ms"]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("crowded", [False, True])
def test_value_vs_cost_names_cover_neither_each_other_nor_a_trial(direction: str, crowded: bool) -> None:
    trials, _ = make_study(300)
    if crowded:  # forty members in a corner
        trials.loc[:39, "state"] = "complete"
        trials.loc[:39, "value"] = np.linspace(0.90, 0.91, 40)
        trials.loc[:39, "parameters"] = np.arange(250_000, 250_040)
    if direction == "minimize":
        trials["value"] = 1 - trials["value"]
    figure = value_vs_cost(trials, metric="x", direction=direction)  # type: ignore[arg-type]
    render(figure)
    axes = figure.axes[0]
    # the texts alone: the extent of an annotation includes its line
    boxes = [Text.get_window_extent(text).padded(-1) for text in axes.texts]
    assert len(boxes) == len(pareto_front(trials, direction=direction, cost="parameters"))  # type: ignore[arg-type]
    assert not any(box.overlaps(other) for index, box in enumerate(boxes) for other in boxes[:index])
    done = finished(trials)
    dots = axes.transData.transform(done[["parameters", "value"]].to_numpy(float))
    assert not any(box.contains(x, y) for box in boxes for x, y in dots)
    area = axes.get_window_extent()
    assert all(area.x0 <= box.x0 and area.y0 <= box.y0 and box.y1 <= area.y1 for box in boxes)


def test_value_vs_cost_without_costs_is_a_text() -> None:
    trials = table(("complete", 0.5), parameters=[np.nan])
    assert "logged its model size" in title(value_vs_cost(trials, **ACCURACY))
