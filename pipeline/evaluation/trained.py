"""The run that trained a model: its settings, and which data they were."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline.config import Config, read_recipe
from pipeline.errors import UsageError
from pipeline.lifetime.ownership import PARENT

CONFIG_FILE = "config.yaml"


class Trained(NamedTuple):
    """A run that trained a model."""

    run: Run
    config: Config
    fingerprint: str  # of its data; empty where nobody has said it


def trained(client: MlflowClient, run_id: str) -> Trained:
    """What a run was trained with.

    Raises:
        UsageError: it is gone, or says nothing of its settings that this version can read.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UsageError(f"a model needs the run that trained it, got one of run {run_id}, which is gone") from None
    if run.info.lifecycle_stage != "active":
        raise UsageError(
            f"a model needs the run that trained it, got one of run {run_id}, which has been deleted: "
            f"`mlflow runs restore --run-id {run_id}` brings it back"
        )
    return Trained(run, _config(run), _fingerprint(client, run))


def _config(run: Run) -> Config:
    """The settings as they were used: the parameters of a run by `mlflow run` may be as a person typed them."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with TemporaryDirectory() as folder:
        try:
            file = Path(download_artifacts(artifact_uri=f"{run.info.artifact_uri}/{CONFIG_FILE}", dst_path=folder))
        except Exception:  # noqa: BLE001 - a search's trainings have none, and each kind of store raises its own
            file = None
        said = (
            read_recipe(str(file)) if file else {k: v for k, v in run.data.params.items() if k in Config.model_fields}
        )
    return Config.build(said)


def _fingerprint(client: MlflowClient, run: Run) -> str:
    """Of the data of a run; a search's trainings say nothing of theirs: the search does, above them."""
    seen = set()
    while "data.fingerprint" not in run.data.tags and (parent := run.data.tags.get(PARENT)) and parent not in seen:
        seen.add(parent)
        run = client.get_run(parent)
    return run.data.tags.get("data.fingerprint", "")
