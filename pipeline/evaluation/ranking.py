"""Which trials of a study have finished, the best of them, and those that no other beats in value and cost.

A table of trials has a row a trial: `number`, `state` (complete, pruned, failed, infeasible, duplicate), `value` (the
metric, NaN where there is none), `params.<name>` for each searched setting, `parameters` (the model's size) and more.
"""

from typing import Literal, TypeAlias

import numpy as np
import pandas as pd

Direction: TypeAlias = Literal["maximize", "minimize"]


def sign(direction: Direction) -> int:
    """What makes the best value the largest: 1 or -1. Raises ValueError for anything but Optuna's two directions."""
    if direction not in ("maximize", "minimize"):
        raise ValueError(f"direction must be maximize or minimize: got {direction!r}")
    return 1 if direction == "maximize" else -1


def finished(trials: pd.DataFrame) -> pd.DataFrame:
    """The complete trials with a finite value, by number; a duplicate only repeats one of them."""
    values = pd.to_numeric(trials["value"])
    return trials[(trials["state"] == "complete") & np.isfinite(values)].sort_values("number")


def best(trials: pd.DataFrame, *, direction: Direction) -> int | None:
    """Number of the finished trial with the best value, the first of equals; None where none has finished."""
    done = finished(trials)
    scores = sign(direction) * done["value"].to_numpy(float)
    return int(done["number"].iloc[scores.argmax()]) if len(done) else None


def pareto_front(trials: pd.DataFrame, *, direction: Direction, cost: str) -> list[int]:
    """Numbers of the finished trials that no other beats in both value and `cost`, cheapest first.

    `cost` is a column where less is better: parameters, seconds, a latency. Trials without it are left out; of several
    with the same value and cost all are members.
    """
    done = finished(trials)
    costs = pd.to_numeric(done[cost]).to_numpy(float)
    scores = sign(direction) * done["value"].to_numpy(float)
    front: list[int] = []
    for row in np.lexsort((-scores, costs)):  # the cheapest first, of these the best
        beaten = front and (
            scores[row] < scores[front[-1]] or (scores[row] == scores[front[-1]] and costs[row] > costs[front[-1]])
        )
        if np.isfinite(costs[row]) and not beaten:
            front.append(int(row))
    return [int(number) for number in done["number"].to_numpy()[front]]
