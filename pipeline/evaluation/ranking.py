"""The ranking of a study's trials: which have finished, which is best, which form the Pareto front of value and cost.

A table of trials has a row for each trial and the columns `number`, `state` (complete, pruned, failed, infeasible,
duplicate), `value` (the metric, NaN if there is none), `params.<name>` for each searched setting, `parameters` (the
size of the model) and more.
"""

import numpy as np
import pandas as pd

from pipeline.config.monitor import Direction


def sign(direction: Direction) -> int:
    """Return the factor, 1 or -1, that makes the best value the largest.

    Raises:
        ValueError: The direction is not one of Optuna's two.
    """
    if direction not in ("maximize", "minimize"):
        raise ValueError(f"direction must be maximize or minimize, got {direction!r}")
    return 1 if direction == "maximize" else -1


def finished(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the complete trials with a finite value, by number; a duplicate only repeats one of them."""
    values = pd.to_numeric(trials["value"])
    return trials[(trials["state"] == "complete") & np.isfinite(values)].sort_values("number")


def best(trials: pd.DataFrame, *, direction: Direction) -> int | None:
    """Return the number of the finished trial with the best value, the first of equals; None if none has finished."""
    done = finished(trials)
    scores = sign(direction) * done["value"].to_numpy(float)
    return int(done["number"].iloc[scores.argmax()]) if len(done) else None


def pareto_front(trials: pd.DataFrame, *, direction: Direction, cost: str) -> list[int]:
    """Return the numbers of the finished trials that no other one beats in both value and cost, cheapest first.

    Trials without the cost are left out. Trials with the same value and cost are all members, or none is.

    Args:
        trials: A table of trials.
        direction: Whether the value is maximized or minimized.
        cost: A column that is minimized: parameters, seconds or a latency.
    """
    done = finished(trials)
    costs = pd.to_numeric(done[cost]).to_numpy(float)
    scores = sign(direction) * done["value"].to_numpy(float)
    front: list[int] = []
    # the cheapest first, and of these the best
    for row in np.lexsort((-scores, costs)):
        beaten = front and (
            scores[row] < scores[front[-1]] or (scores[row] == scores[front[-1]] and costs[row] > costs[front[-1]])
        )
        if np.isfinite(costs[row]) and not beaten:
            front.append(int(row))
    return [int(number) for number in done["number"].to_numpy()[front]]
