"""Runs as training leaves them, as far as a report reads them; made without training."""

from typing import NamedTuple

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Metric, Param, RunTag

from pipeline.config.recipe import to_yaml
from pipeline.config.training import TrainingConfig
from pipeline.tracking.tags import Role, Tag

CLASSES = ["cat", "dog", "owl"]


class Store(NamedTuple):
    """A client of a tracking store, and the experiment in it that runs are logged to."""

    client: mlflow.MlflowClient
    experiment_id: str


def make_run(
    store: Store,
    name: str,
    *,
    correct=None,
    metrics=None,
    settings=None,
    params=None,
    tags=None,
    status="FINISHED",
    curve=(0.5, 0.6),
) -> str:
    """Log a run and return its id.

    Args:
        store: Where to log it.
        name: Of the run.
        correct: (n,) whether each of the first n test images was classified correctly; None if it was not tested.
        metrics: Further metrics.
        settings: Those of its config.yaml.
        params: Parameters that differ from config.yaml.
        tags: Further tags.
        status: Of the run.
        curve: Validation accuracy of each epoch.
    """
    client = store.client
    config = TrainingConfig.build({"dataset": "digits", **(settings or {})})
    parameters = {setting: config.text(setting) for setting in TrainingConfig.model_fields} | (params or {})
    all_metrics = {"parameters": 1000.0} | ({"best_val_accuracy": max(curve)} if curve else {}) | (metrics or {})
    if correct is not None:
        all_metrics |= {"test_accuracy": float(np.mean(correct))}
    run_id = client.create_run(store.experiment_id, run_name=name).info.run_id
    points = [Metric("val_accuracy", value, 0, epoch) for epoch, value in enumerate(curve, start=1)]
    all_tags = {Tag.ROLE: Role.RUN, Tag.DATA: "digits", Tag.DATA_FINGERPRINT: "d0"} | (tags or {})
    client.log_batch(
        run_id,
        points + [Metric(metric, value, 0, 0) for metric, value in all_metrics.items()],
        [Param(setting, value) for setting, value in parameters.items()],
        [RunTag(tag, value) for tag, value in all_tags.items()],
    )
    client.log_text(run_id, to_yaml(config), "config.yaml")
    if correct is not None:
        _log_test_outcome(client, run_id, np.asarray(correct))
    if status != "RUNNING":
        client.set_terminated(run_id, status)
    return run_id


def _log_test_outcome(client: mlflow.MlflowClient, run_id: str, correct) -> None:
    labels = np.arange(len(correct)) % len(CLASSES)
    predicted = np.where(correct, labels, (labels + 1) % len(CLASSES))
    images = [f"{number:016x}" for number in range(len(correct))]
    table = pd.DataFrame({"image": images, "label": labels, "predicted": predicted, "probability": 0.5})
    client.log_text(run_id, table.to_csv(index=False), "test_predictions.csv")
    recalls = [correct[labels == label].mean() for label in range(len(CLASSES))]
    client.log_text(run_id, pd.DataFrame({"class": CLASSES, "recall": recalls}).to_csv(index=False), "per_class.csv")
    client.log_image(run_id, np.full((4, 4, 3), 128, np.uint8), artifact_file="plots/depthwise_kernels.png")
