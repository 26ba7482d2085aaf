"""Compare the rungs of successive halving on recorded learning curves, with configurations drawn at random.

Usage: python experiments/benchmarks/rungs.py

The sampler plays no part here: every configuration comes once, in random order. A stopped one goes on once it is among
the best of its rung. As in search.py, what counts are the epochs until a training near the best has run to its end.
"""

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import numpy as np
import pandas as pd
from arguments import take_no_arguments
from replay import RecordedCurves
from search import FOLDER, RECORDED, TOLERANCE

from pipeline.search.space import parse_search

SEEDS = 200
# Rungs as parts of all epochs, rounded down, or from epoch 1 on; and for one configuration in how many
RUNGS: dict[str, tuple[Sequence[float], int]] = {
    "none": ((), 2),
    "1/2, factor 3": ((1 / 2,), 3),
    "1/2, factor 4": ((1 / 2,), 4),
    "1/2, factor 2": ((1 / 2,), 2),
    "1/4, 3/4, factor 3": ((1 / 4, 3 / 4), 3),
    "1/4, 1/2, factor 2": ((1 / 4, 1 / 2), 2),
    "1/8, 1/4, 1/2, factor 2": ((1 / 8, 1 / 4, 1 / 2), 2),
    "1 and 3 epochs, factor 3": ((1, 3), 3),
}
Curve = Sequence[float]


def halving(curves: Sequence[Curve], rungs: Sequence[int], factor: int, goal: float) -> float:
    """Return the epochs until a training reaches the goal; infinity if it stays at a rung.

    Args:
        curves: In the order in which they are drawn.
        rungs: In epochs.
        factor: One in so many goes on.
        goal: A value.
    """
    spent, drawn = 0, 0
    values: list[dict[int, float]] = [{} for _ in rungs]  # by configuration, of those that have reached the rung
    stopped: list[set[int]] = [set() for _ in rungs]
    while True:
        number, done = _promoted(values, stopped, rungs, factor)
        if number is None:
            if drawn == len(curves):
                return math.inf
            number, drawn = drawn, drawn + 1
        curve = curves[number]
        for rung, epoch in enumerate(rungs):
            if epoch <= done:
                continue
            spent, done = spent + epoch - done, epoch
            values[rung][number] = curve[epoch - 1]
            ranked = sorted(values[rung].values(), reverse=True)
            if curve[epoch - 1] < ranked[max(1, len(ranked) // factor) - 1]:
                stopped[rung].add(number)
                break
        else:
            spent += len(curve) - done
            if max(curve) >= goal:
                return spent


def _promoted(
    values: Sequence[dict[int, float]], stopped: Sequence[set[int]], rungs: Sequence[int], factor: int
) -> tuple[int | None, int]:
    """Return a stopped configuration that is among the best of its rung by now, and its epochs; None if none is."""
    for rung in reversed(range(len(rungs))):
        best = sorted(values[rung].values(), reverse=True)[: len(values[rung]) // factor]
        for number in sorted(stopped[rung]):
            if values[rung][number] in best:
                stopped[rung].discard(number)
                return number, rungs[rung]
    return None, 0


def half_median(curves: Sequence[Curve], goal: float, *, startup: int = 5) -> float:
    """Return the same for the median pruner after half of the epochs, once some trainings have finished."""
    spent = 0
    finished: list[Curve] = []
    for curve in curves:
        for epoch in range(1, len(curve) + 1):
            spent += 1
            others = [other[epoch - 1] for other in finished]
            compared = len(curve) // 2 <= epoch < len(curve) and len(finished) >= startup
            if compared and max(curve[:epoch]) < median(others):
                break
        else:
            finished.append(curve)
            if max(curve) >= goal:
                return spent
    return math.inf


def compare(recorded: RecordedCurves) -> pd.DataFrame:
    """Return a row for each kind of rungs: median and quartiles of the epochs, and how often they find the best."""
    curves, epochs = list(recorded.curves.values()), recorded.epochs
    goal = recorded.best_accuracy - TOLERANCE
    numbers = [np.random.default_rng(seed).permutation(len(curves)) for seed in range(SEEDS)]
    orders = [[curves[number] for number in order] for order in numbers]
    kinds: dict[str, Callable[[Sequence[Curve]], float]] = {"median after half": lambda order: half_median(order, goal)}
    for name, (parts, factor) in RUNGS.items():
        rungs = [max(1, int(part * epochs)) if part < 1 else int(part) for part in parts]
        kinds[name] = partial(halving, rungs=rungs, factor=factor, goal=goal)
    rows = []
    for name, find in kinds.items():
        spent = sorted(map(find, orders))
        low, middle, high = (spent[len(spent) * quarter // 4] for quarter in (1, 2, 3))
        found = sum(map(math.isfinite, spent)) / len(spent)
        rows.append({"rungs": name, "epochs": middle, "quartiles": f"{low} to {high}", "found": f"{found:.0%}"})
    return pd.DataFrame(rows)


def main() -> None:
    """Print a comparison for each set of curves."""
    take_no_arguments(__doc__)
    for file, search in RECORDED.items():
        recorded = RecordedCurves(parse_search([search]), FOLDER / file)
        sys.stdout.write(f"{search}, {SEEDS} seeds\n\n{compare(recorded).to_string(index=False)}\n\n")


if __name__ == "__main__":
    main()
