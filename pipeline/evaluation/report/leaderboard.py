"""Recipes of one data set -> a table: the best first, and how sure it is that each other one is worse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.evaluation.metrics import is_correct
from pipeline.evaluation.report.groups import Metric, RunGroup, differing_settings
from pipeline.evaluation.significance import Difference, Sample, difference, pooled_variance

SHARES = frozenset(["accuracy", "sd", "behind", "behind_low", "behind_high"])  # columns of fractions


@dataclass(frozen=True)
class LeaderboardRow:
    """A recipe's place, counted from 1 over all data sets, and how far it is behind the best on the same data."""

    place: int
    recipe: RunGroup
    measured: Sample
    behind: Difference | None  # None: the best itself, or not to be compared, as it has not finished

    @property
    def verdict(self) -> str:
        """best, worse, within noise, not known, or in what state the runs are."""
        if not self.recipe.finished:
            return self.recipe.state
        return self.behind.verdict if self.behind else "best"


def leaderboard_rows(
    recipes: Sequence[RunGroup], metric: Metric, predictions: Mapping[str, pd.DataFrame], *, first: int = 1
) -> list[LeaderboardRow]:
    """The places of the recipes of one data set, which come in order.

    Args:
        predictions: tables of test images by the id of the run; used where `metric` is of the test images.
        first: place of the first recipe.
    """
    measured = [_measured(recipe, metric, predictions) for recipe in recipes]
    finished = [one for one, recipe in zip(measured, recipes, strict=True) if recipe.finished]
    between_seeds = pooled_variance(finished)
    return [
        LeaderboardRow(
            place,
            recipe,
            one,
            difference(finished[0], one, between_seeds) if recipe.finished and one is not finished[0] else None,
        )
        for place, (recipe, one) in enumerate(zip(recipes, measured, strict=True), start=first)
    ]


def leaderboard_table(found: Sequence[LeaderboardRow], metric: Metric) -> pd.DataFrame:
    """A row a recipe; accuracies and differences are fractions, NaN where there is none."""
    rows = [_row(one, metric) for one in found]
    changed = differing_settings([one.recipe for one in found])
    runs = pd.Series([" ".join(run.id for run in one.recipe.runs) for one in found], name="run_ids")
    return pd.concat([pd.DataFrame(rows), changed.add_prefix("settings."), runs], axis=1)


def as_markdown(board: pd.DataFrame) -> str:
    """A table in Markdown, accuracies and differences in per cent."""
    told = board.drop(columns="run_ids")
    for name in told.select_dtypes("number").columns:
        shape = "{:.2%}" if name in SHARES else "{:,.6g}"
        told[name] = [shape.format(value) if value == value else "" for value in told[name]]
    lines: list[list[str]] = [told.columns.tolist(), ["---"] * told.shape[1], *told.astype(str).to_numpy().tolist()]
    return "".join(f"| {' | '.join(_cell_text(value) for value in line)} |\n" for line in lines)


def _measured(recipe: RunGroup, metric: Metric, predictions: Mapping[str, pd.DataFrame]) -> Sample:
    values = recipe.values(metric)
    tables = [predictions[run.id] for run in recipe.runs if run.id in predictions]
    if metric != "test_accuracy" or len(tables) < len(recipe.runs):
        return Sample(values)
    images = tables[0]["image"].to_numpy()
    if any(not np.array_equal(images, table["image"].to_numpy()) for table in tables):  # a split of its own a seed
        return Sample(values)
    return Sample(values, images, np.stack([is_correct(table) for table in tables]))


def _row(one: LeaderboardRow, metric: Metric) -> dict[str, object]:
    recipe, behind = one.recipe, one.behind
    return {
        "place": one.place,
        "recipe": recipe.name,
        "data": recipe.data_name,
        "data_fingerprint": recipe.data,
        "metric": metric,
        "runs": len(recipe.runs),
        "accuracy": one.measured.mean,
        "sd": one.measured.sd,
        "behind": behind.mean if behind else np.nan,
        "behind_low": behind.low if behind else np.nan,
        "behind_high": behind.high if behind else np.nan,
        "interval_over": behind.over if behind else "",
        "verdict": one.verdict,
        "parameters": recipe.figure("parameters"),
        "seconds": recipe.seconds(),
        "latency_ms": recipe.figure("latency_ms"),
        "test_opened": recipe.test_opened,
    }


def _cell_text(text: str) -> str:
    """Text that does not end its cell of a Markdown table."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())
