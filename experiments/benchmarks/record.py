"""Export the learning curves of a finished search as CSV, with a row per epoch.

Usage: python experiments/benchmarks/record.py SEARCH STUDY > curves.csv

SEARCH is the search's file, or its name in experiments/searches/. The trials are read from the tracking store that
MLFLOW_TRACKING_URI names. The columns are the settings of the space, then parameters, epoch, val_accuracy and
epoch_seconds. The cell of a setting that a trial has not drawn, as its condition does not hold, is empty.
"""

import sys
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import Run

from pipeline.search.distributions import coerce
from pipeline.search.space import SearchSpec, parse_search
from pipeline.tracking.tags import Role, Tag

CURVES = ("val_accuracy", "epoch_seconds")


def learning_curves(search: SearchSpec, study: str) -> pd.DataFrame:
    """Return a row for each epoch of each finished trial, sorted by the settings of the space."""
    client = mlflow.MlflowClient()
    experiment_ids = [experiment.experiment_id for experiment in client.search_experiments()]
    trials = f"tags.{Tag.STUDY} = '{study}' and tags.{Tag.ROLE} = '{Role.TRIAL}' and attributes.status = 'FINISHED'"
    runs = client.search_runs(experiment_ids, filter_string=trials, max_results=5000)
    if not runs:
        raise SystemExit(f"{mlflow.get_tracking_uri()} has no finished trial of a study {study}")
    rows = [row for run in runs for row in _epochs(client, run, search)]
    return pd.DataFrame(rows).sort_values([*search.space, "epoch"], na_position="first")


def _epochs(client: mlflow.MlflowClient, run: Run, search: SearchSpec) -> list[dict[str, Any]]:
    values: dict[str, Any] = search.drawn({name: coerce(name, run.data.params[name]) for name in search.space})
    values |= {"parameters": int(run.data.metrics["parameters"])}
    history = {
        name: {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)} for name in CURVES
    }
    # a cell for each setting, whether or not it was drawn
    empty = dict.fromkeys(search.space)
    return [
        empty | values | {"epoch": epoch} | {name: round(history[name][epoch], 4) for name in CURVES}
        for epoch in sorted(history["val_accuracy"])
    ]


if __name__ == "__main__":
    learning_curves(parse_search([sys.argv[1]]), sys.argv[2]).to_csv(sys.stdout, index=False)
