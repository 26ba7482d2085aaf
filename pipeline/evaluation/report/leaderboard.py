"""Groups of runs on one data set -> a leaderboard: the best first, and the gap of each other one with its interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from pipeline.config.monitor import ResultMetric, sign
from pipeline.evaluation import bootstrap
from pipeline.evaluation.metrics import is_correct
from pipeline.evaluation.report.groups import RunGroup, differing_settings
from pipeline.evaluation.significance import Difference, Sample, difference, pooled_variance
from pipeline.runtime.tables import markdown_cell
from pipeline.runtime.text import is_share

VALUES = frozenset(["value", "sd", "gap", "gap_low", "gap_high"])  # columns in the unit of the metric


@dataclass(frozen=True)
class LeaderboardRow:
    """The rank of a group of runs, counted from 1 over all data sets, and its gap to the best on the same data."""

    rank: int
    group: RunGroup
    sample: Sample
    gap: Difference | None  # None: the group is the best, or is not compared with it

    @property
    def is_ranked(self) -> bool:
        """Return whether the group is compared with the best one."""
        return self.group.finished and not self.group.is_ranked_apart

    @property
    def verdict(self) -> str:
        """Return best, worse, within noise, better or not known.

        For trials that are ranked apart it is `trial`, for runs that have not finished their state.
        """
        if not self.group.finished:
            return self.group.state
        if self.group.is_ranked_apart:
            return "trial"
        return self.gap.verdict if self.gap else "best"


def rank_groups(
    groups: Sequence[RunGroup], metric: ResultMetric, predictions: Mapping[str, pd.DataFrame], *, first_rank: int = 1
) -> list[LeaderboardRow]:
    """Return a row for each group of one data set, with the gap to the first one.

    Args:
        groups: In the order in which `group_runs` returns them: the best first, then the others that are compared with
            it, then those that have not finished, and trials that are ranked apart.
        metric: What the groups are ranked by.
        predictions: Tables of test images by run id; they are used if `metric` is measured on the test images.
        first_rank: Rank of the first group.
    """
    samples = [_sample(group, metric, predictions) for group in groups]
    rows = [
        LeaderboardRow(rank, group, sample, None)
        for rank, (group, sample) in enumerate(zip(groups, samples, strict=True), start=first_rank)
    ]
    ranked = [row.sample for row in rows if row.is_ranked]
    between_seeds = pooled_variance(ranked)
    return [
        replace(row, gap=difference(ranked[0], row.sample, between_seeds, sign=sign(metric)))
        if row.is_ranked and row.sample is not ranked[0]
        else row
        for row in rows
    ]


def leaderboard_table(rows: Sequence[LeaderboardRow], metric: ResultMetric) -> pd.DataFrame:
    """Return the leaderboard as a table, a row a configuration.

    Accuracies, F1 and their gaps are fractions, NaN where there is none. The settings in which the rows differ are
    columns `settings.<name>`; the ids of the runs are in `run_ids`, separated by spaces.
    """
    differing = differing_settings([row.group for row in rows])
    run_ids = pd.Series([" ".join(run.id for run in row.group.runs) for row in rows], name="run_ids")
    figures = pd.DataFrame([_columns(row, metric) for row in rows])
    if figures["energy_kwh"].isna().all():
        # few machines count it
        del figures["energy_kwh"]
    return pd.concat([figures, differing.add_prefix("settings."), run_ids], axis=1)


def to_markdown(board: pd.DataFrame) -> str:
    """Return the leaderboard as a table in Markdown, fractions in per cent, without the run ids."""
    text = board.drop(columns="run_ids")
    of_values = "{:.2%}" if board["metric"].map(is_share).all() else "{:.4f}"
    for name in text.select_dtypes("number").columns:
        spec = of_values if name in VALUES else "{:,.6g}"
        text[name] = ["" if np.isnan(value) else spec.format(value) for value in text[name]]
    lines: list[list[str]] = [text.columns.tolist(), ["---"] * text.shape[1], *text.astype(str).to_numpy().tolist()]
    return "".join(f"| {' | '.join(markdown_cell(cell) for cell in line)} |\n" for line in lines)


def _sample(group: RunGroup, metric: ResultMetric, predictions: Mapping[str, pd.DataFrame]) -> Sample:
    """Return the metric of a group's runs; with the outcomes on the test images if all runs have the same ones."""
    values = group.values(metric)
    tables = [predictions[run.id] for run in group.runs if run.id in predictions]
    if not metric.startswith("test_") or len(tables) < len(group.runs):
        return Sample(values)
    if metric == "test_loss" and any(bootstrap.PROBABILITY not in table for table in tables):
        return Sample(values)
    images = tables[0]["image"].to_numpy()
    if any(not np.array_equal(images, table["image"].to_numpy()) for table in tables):
        # Each seed has split the data anew.
        return Sample(values)
    if metric == "test_accuracy":
        return Sample(values, images, np.stack([is_correct(table) for table in tables]))
    return Sample(values, images, resampled=np.stack([bootstrap.resample(metric, table) for table in tables]))


def _columns(row: LeaderboardRow, metric: ResultMetric) -> dict[str, object]:
    group, gap = row.group, row.gap
    return {
        "rank": row.rank,
        "configuration": group.name,
        "kind": group.kind,
        "data": group.data_name,
        "data_fingerprint": group.data,
        "metric": metric,
        "runs": len(group.runs),
        "value": row.sample.mean,
        "sd": row.sample.sd,
        "gap": gap.mean if gap else np.nan,
        "gap_low": gap.low if gap else np.nan,
        "gap_high": gap.high if gap else np.nan,
        "interval_over": gap.over if gap else "",
        "verdict": row.verdict,
        "parameters": group.mean_metric("parameters"),
        "seconds": group.mean_seconds(),
        "energy_kwh": group.mean_metric("energy_kwh"),
        "latency_ms": group.mean_metric("latency_ms"),
        "test_set_accesses": group.test_set_accesses,
    }
