"""The ranking of a study's trials."""

import numpy as np
import pytest

from pipeline.evaluation.ranking import best, finished, pareto_front
from tests.support.studies import make_study, table


def test_finished_leaves_out_pruned_duplicate_and_not_finite_trials() -> None:
    trials = table(("pruned", 0.9), ("complete", 0.5), ("complete", np.inf), ("duplicate", 0.8), ("failed", np.nan))
    assert finished(trials)["number"].tolist() == [1]
    assert best(trials, direction="maximize") == 1


def test_best_is_the_first_of_equals_in_either_direction() -> None:
    trials = table(("complete", 0.2), ("complete", 0.7), ("complete", 0.7))
    assert best(trials, direction="maximize") == 1
    assert best(trials, direction="minimize") == 0
    assert best(trials.assign(state="failed"), direction="maximize") is None


def test_best_in_an_unknown_direction_raises() -> None:
    with pytest.raises(ValueError, match="maximize or minimize, got 'up'"):
        best(table(("complete", 1)), direction="up")  # type: ignore[arg-type]


def test_pareto_front_has_all_of_several_equals_cheapest_first() -> None:
    values = [0.5, 0.7, 0.6, 0.7, 0.9, 0.7, 0.99]
    costs = [10, 30, 40, 30, 90, 35, np.nan]
    trials = table(*[("complete", value) for value in values], parameters=costs)
    assert pareto_front(trials, direction="maximize", cost="parameters") == [0, 1, 3, 4]
    assert pareto_front(trials, direction="minimize", cost="parameters") == [0]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_pareto_front_equals_the_comparison_of_every_pair(direction: str) -> None:
    trials, _ = make_study(200)
    sign = 1 if direction == "maximize" else -1
    points = [(row.number, sign * row.value, row.parameters) for row in finished(trials).itertuples()]
    unbeaten = [
        a[0] for a in points if not any(b[1] >= a[1] and b[2] <= a[2] and (b[1] > a[1] or b[2] < a[2]) for b in points)
    ]
    assert sorted(pareto_front(trials, direction=direction, cost="parameters")) == unbeaten  # type: ignore[arg-type]
