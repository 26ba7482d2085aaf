"""Export the learning curves of a finished search as CSV, with a row per epoch.

Usage: python experiments/benchmarks/record.py STUDY kernel_size,patch_size,depth > kernel-patch-depth.csv

The trials are read from the tracking store that MLFLOW_TRACKING_URI names. The columns are the settings named on the
command line, then parameters, epoch, val_accuracy and epoch_seconds.
"""

import sys

import mlflow
import pandas as pd
from mlflow.entities import Run

from pipeline.tracking.tags import Role, Tag

CURVES = ("val_accuracy", "epoch_seconds")


def learning_curves(study: str, settings: list[str]) -> pd.DataFrame:
    """Return a row for each epoch of each finished trial, sorted by the settings."""
    client = mlflow.MlflowClient()
    experiment_ids = [experiment.experiment_id for experiment in client.search_experiments()]
    trials = f"tags.{Tag.STUDY} = '{study}' and tags.{Tag.ROLE} = '{Role.TRIAL}' and attributes.status = 'FINISHED'"
    runs = client.search_runs(experiment_ids, filter_string=trials, max_results=5000)
    if not runs:
        raise SystemExit(f"{mlflow.get_tracking_uri()} has no finished trial of a study {study}")
    rows = [row for run in runs for row in _epochs(client, run, settings)]
    return pd.DataFrame(rows).sort_values([*settings, "epoch"])


def _epochs(client: mlflow.MlflowClient, run: Run, settings: list[str]) -> list[dict[str, float]]:
    values = {name: int(run.data.params[name]) for name in settings}
    values |= {"parameters": int(run.data.metrics["parameters"])}
    history = {
        name: {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)} for name in CURVES
    }
    return [
        values | {"epoch": epoch} | {name: round(history[name][epoch], 4) for name in CURVES}
        for epoch in sorted(history["val_accuracy"])
    ]


if __name__ == "__main__":
    learning_curves(sys.argv[1], sys.argv[2].split(",")).to_csv(sys.stdout, index=False)
