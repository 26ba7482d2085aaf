"""A model that a run here has logged, by its URI: its files are checked, then its Keras archive is read in safe mode.

Nothing of the model is run: not the Python file of a registered one either. What is checked against are the digests
that the tracking server holds, so that whoever can write to the artifact store alone cannot exchange a model.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import mlflow
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel as Entity
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from pipeline.digests import changed
from pipeline.errors import UsageError
from pipeline.model_uri import URI, parts
from pipeline.outbox.logged import DIGESTS, model_of
from pipeline.printable import listed, one_line
from pipeline.store_urls import unusable

if TYPE_CHECKING:
    import keras

ARCHIVE = ".keras"  # ends the name of the one file that is loaded


@dataclass(frozen=True)
class LoggedModel:
    """A model, and what it was made with."""

    model: "keras.Model"  # raw pixels (b, height, width, channels), 0 to 255 -> probabilities (b, classes)
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (height, width, channels)
    run_id: str  # of the run that trained it
    model_id: str  # m-...


def load(uri: str) -> LoggedModel:
    """The model at models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID or runs:/RUN_ID/NAME.

    Raises:
        UsageError: there is no such model, it was not logged by a run here, or its files are not those that were
            logged.
    """
    import keras  # whoever only looks for a model is spared TensorFlow

    client = MlflowClient()
    found = find(client, uri)
    kept = _kept(found, uri)
    with TemporaryDirectory() as temporary:
        folder = _downloaded(found, uri, temporary)
        if wrong := changed(folder, kept):
            raise UsageError(
                f"a model's files must be those that its run logged: of {uri} ({found.model_id}), by their SHA-256, "
                f"these are not: {listed(wrong)}; find out who changed the artifact store, or train the model again"
            )
        about = Model.load(str(folder / "MLmodel"))
        model = keras.saving.load_model(folder / _archive(kept, uri), compile=False, safe_mode=True)
    classes = tuple((about.metadata or {})["classes"])
    return LoggedModel(model, classes, tuple(model.input_shape[1:]), str(found.source_run_id), found.model_id)


def refuse_missing(uri: str) -> None:
    """Raise UsageError where a URI names no logged model, before TensorFlow is imported."""
    find(MlflowClient(), uri)


def find(client: MlflowClient, uri: str) -> Entity:
    """The logged model that a URI names.

    Raises:
        UsageError: there is none.
    """
    named = parts(uri)
    try:
        model = _find(client, named)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"}:
            raise unusable("the tracking store", mlflow.get_tracking_uri(), error) from None
        raise UsageError(f"model must be in this tracking store, got {uri}: {one_line(error, most=300)}") from None
    if model is None or model.status != LoggedModelStatus.READY:
        raise UsageError(f"model must be in this tracking store, whole, got {uri}, which is not")
    return model


def _find(client: MlflowClient, named: dict[str, str]) -> Entity | None:
    if "run" in named:
        return model_of(client, client.get_run(named["run"]), named["of"])
    if "id" in named:
        return client.get_logged_model(named["id"])
    source = URI.fullmatch(_version(client, named).source or "")  # SQL registries leave model_id out
    return client.get_logged_model(source["id"]) if source and source["id"] else None


def _version(client: MlflowClient, named: dict[str, str]) -> ModelVersion:
    name = named["name"]
    if "alias" in named:
        return client.get_model_version_by_alias(name, named["alias"])
    if named["version"] != "latest":
        return client.get_model_version(name, named["version"])
    versions = client.search_model_versions(f"name = '{name}'", max_results=1, order_by=["version_number DESC"])
    if not versions:
        raise MlflowException(f"there is no version of {name}", error_code=RESOURCE_DOES_NOT_EXIST)
    return versions[0]


def _kept(found: Entity, uri: str) -> dict[str, str]:
    """The digests that the tracking server holds of a model's files."""
    if DIGESTS not in found.tags:
        raise UsageError(
            f"model must have the digests of its files, which runs of this project log with it: {uri} "
            f"({found.model_id}) has none; train it again"
        )
    return dict(json.loads(found.tags[DIGESTS]))


def _downloaded(found: Entity, uri: str, temporary: str) -> Path:
    try:
        return Path(download_artifacts(artifact_uri=found.artifact_location, dst_path=temporary))
    except Exception as error:  # noqa: BLE001 - each kind of store raises its own
        raise unusable(f"the files of {uri}", found.artifact_location, error) from None


def _archive(kept: dict[str, str], uri: str) -> str:
    names = [name for name in kept if name.endswith(ARCHIVE)]
    if len(names) != 1:
        raise UsageError(f"model must hold one Keras archive, got {uri} with {len(names)}")
    return names[0]
