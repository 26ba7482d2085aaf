"""Standings without a store behind them."""

import numpy as np

from pipeline.reporting.differences import Measured
from pipeline.reporting.leaderboard import Standing
from pipeline.reporting.reading import Row
from pipeline.reporting.recipes import Recipe

NOTHING = Row("", "", "1", "", "finished", "run", "", "", False, "", "", {}, {}, "digits", "d0", 0, None, 0)


def standing(place, values, *, name="", state="finished", settings=None, **figures):
    runs = tuple(
        NOTHING._replace(id=f"{place}-{seed}", state=state, figures={"test_accuracy": value} | figures)
        for seed, value in enumerate(values)
    )
    recipe = Recipe(name or f"recipe {place}", settings or {}, runs, "d0", "digits", state)
    return Standing(place, recipe, Measured(np.array(values)), None)
