"""The curves of a finished search as a CSV: a row an epoch, with settings, parameters, val_accuracy and epoch_seconds.

python experiments/benchmarks/record.py STUDY kernel_size,patch_size,depth > kernel-patch-depth.csv
reads the trials of a study from the tracking store that MLFLOW_TRACKING_URI names.
"""

import sys

import mlflow
import pandas as pd
from mlflow.entities import Run

from pipeline.tracking.tags import Role, Tag

CURVES = ("val_accuracy", "epoch_seconds")


def curves(study: str, settings: list[str]) -> pd.DataFrame:
    """A row for each epoch of each finished trial, in the order of the settings."""
    client = mlflow.MlflowClient()
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    where = f"tags.{Tag.STUDY} = '{study}' and tags.{Tag.ROLE} = '{Role.TRIAL}' and attributes.status = 'FINISHED'"
    found = client.search_runs(everywhere, filter_string=where, max_results=5000)
    rows = [row for run in found for row in _rows(client, run, settings)]
    return pd.DataFrame(rows).sort_values([*settings, "epoch"])


def _rows(client: mlflow.MlflowClient, run: Run, settings: list[str]) -> list[dict[str, float]]:
    held = {name: int(run.data.params[name]) for name in settings} | {"parameters": int(run.data.metrics["parameters"])}
    history = {
        name: {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)} for name in CURVES
    }
    return [
        held | {"epoch": epoch} | {name: round(history[name][epoch], 4) for name in CURVES}
        for epoch in sorted(history["val_accuracy"])
    ]


if __name__ == "__main__":
    curves(sys.argv[1], sys.argv[2].split(",")).to_csv(sys.stdout, index=False)
