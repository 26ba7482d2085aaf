"""Standings without a store behind them."""

import numpy as np

from pipeline.evaluation.report.groups import RunGroup, RunRecord
from pipeline.evaluation.report.leaderboard import LeaderboardRow
from pipeline.evaluation.significance import Sample

EMPTY_RECORD = RunRecord("", "", "1", "", "finished", "run", "", "", False, "", "", {}, {}, "digits", "d0", 0, None, 0)


def make_row(place, values, *, name="", state="finished", settings=None, **figures):
    runs = tuple(
        EMPTY_RECORD._replace(id=f"{place}-{seed}", state=state, metrics={"test_accuracy": value} | figures)
        for seed, value in enumerate(values)
    )
    recipe = RunGroup(name or f"recipe {place}", settings or {}, runs, "d0", "digits", state)
    return LeaderboardRow(place, recipe, Sample(np.array(values)), None)
