"""Rows of a leaderboard that need no tracking store."""

import numpy as np

from pipeline.evaluation.report.groups import RunGroup, RunRecord
from pipeline.evaluation.report.leaderboard import LeaderboardRow
from pipeline.evaluation.significance import Sample

EMPTY_RECORD = RunRecord("", "", "1", "", "finished", "run", "", "", False, "", "", {}, {}, "digits", "d0", 0, None, 0)


def make_row(rank, values, *, name="", state="finished", settings=None, **metrics):
    """Make the row of a group whose runs have these test accuracies; `metrics` are of each run."""
    runs = tuple(
        EMPTY_RECORD._replace(id=f"{rank}-{seed}", state=state, metrics={"test_accuracy": value} | metrics)
        for seed, value in enumerate(values)
    )
    group = RunGroup(name or f"configuration {rank}", settings or {}, runs, "d0", "digits", state)
    return LeaderboardRow(rank, group, Sample(np.array(values)), None)
