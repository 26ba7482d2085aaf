"""What is asked for, found and accepted before TensorFlow is imported: the model, its run and the images."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.models import get_model_info
from mlflow.tracking.fluent import _get_experiment_id

from pipeline.data import Data
from pipeline.errors import UsageError
from pipeline.evaluation.asked import LATEST, RUN_ID, Asked, EvaluationSettings
from pipeline.evaluation.subject import load, refuse_other_classes, refuse_trained_on
from pipeline.evaluation.trained import Trained, trained
from pipeline.lifetime import ownership
from pipeline.lifetime.ancestors import OPENED
from pipeline.logged_model import find
from pipeline.outbox.logged import MODEL


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model that is there, and images that can be read."""

    uri: str  # of the model
    source: Trained
    data: Data
    settings: EvaluationSettings


@contextmanager
def prepared(asked: Asked) -> Iterator[Prepared]:
    """The model and the images; the run that `mlflow run` opened does not stay open if nothing begins.

    Raises:
        UsageError: the model, its run or the images cannot be had, or have other classes.
    """
    client = MlflowClient()
    with ownership.answering():
        uri = _uri(client, asked.model)
        found = find(client, uri)
        source = trained(client, str(found.source_run_id))
        said = get_model_info(found.model_uri).metadata or {}
    if os.environ.get(OPENED) == source.run.info.run_id:  # `mlflow run --run-id`: a training's run is no evaluation's
        del os.environ[OPENED]
    with ownership.opening(client, os.environ.get(OPENED)):
        data = load(source.config, asked.settings)
        refuse_trained_on(data, asked.settings.split, fingerprint=source.fingerprint)
        refuse_other_classes(data, said.get("classes", data.classes))
        yield Prepared(uri, source, data, asked.settings)


def _uri(client: MlflowClient, text: str) -> str:
    """What MLflow calls the model that a person names."""
    if RUN_ID.fullmatch(text):
        return f"runs:/{text}/{MODEL}"
    if text != LATEST:
        return text
    experiment = str(_get_experiment_id())
    newest = [{"field_name": "creation_timestamp", "ascending": False}]
    for model in client.search_logged_models([experiment], f"name = '{MODEL}'", order_by=newest):
        if model.status == LoggedModelStatus.READY:
            return str(model.model_uri)
    name = client.get_experiment(experiment).name
    raise UsageError(f"model=latest must find a logged model: experiment {name} has none; train first")
