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
import numpy as np
import numpy.typing as npt
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel as Entity
from mlflow.entities import LoggedModelStatus, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from pipeline.config.commands import MODEL_URI, parse_model_uri
from pipeline.evaluation.corruptions import Images
from pipeline.evaluation.robustness import Predict
from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import changed_files
from pipeline.runtime.text import join_names, one_line
from pipeline.runtime.urls import storage_error
from pipeline.tracking.tags import Tag

if TYPE_CHECKING:
    import keras

MODEL = "model"  # the run's network as Keras has it
SERVED = "served"  # the same as it is registered: it answers with class names


def find_logged_model(client: MlflowClient, run: Run, name: str = MODEL) -> Entity | None:
    """The model that a run has logged or begun to log under a name."""
    asked = f"source_run_id = '{run.info.run_id}'"
    found = client.search_logged_models([run.info.experiment_id], filter_string=asked)
    return next((model for model in found if model.name == name), None)


ARCHIVE = ".keras"  # ends the name of the one file that is loaded


@dataclass(frozen=True)
class LoggedModel:
    """A model, and what it was made with."""

    model: "keras.Model"  # raw pixels (b, height, width, channels), 0 to 255 -> probabilities (b, classes)
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (height, width, channels)
    run_id: str  # of the run that trained it
    model_id: str  # m-...


def load_model(uri: str) -> LoggedModel:
    """The model at models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID or runs:/RUN_ID/NAME.

    Raises:
        UsageError: there is no such model, it was not logged by a run here, or its files are not those that were
            logged.
    """
    import keras  # whoever only looks for a model is spared TensorFlow

    client = MlflowClient()
    found = find_model(client, uri)
    kept = _kept(found, uri)
    with TemporaryDirectory() as temporary:
        folder = _downloaded(found, uri, temporary)
        if wrong := changed_files(folder, kept):
            raise UsageError(
                f"a model's files must be those that its run logged: of {uri} ({found.model_id}), by their SHA-256, "
                f"these are not: {join_names(wrong)}; find out who changed the artifact store, or train the model again"
            )
        about = Model.load(str(folder / "MLmodel"))
        model = keras.saving.load_model(folder / _archive(kept, uri), compile=False, safe_mode=True)
    classes = tuple((about.metadata or {})["classes"])
    return LoggedModel(model, classes, tuple(model.input_shape[1:]), str(found.source_run_id), found.model_id)


def check_model_exists(uri: str) -> None:
    """Raise UsageError where a URI names no logged model, before TensorFlow is imported."""
    find_model(MlflowClient(), uri)


def find_model(client: MlflowClient, uri: str) -> Entity:
    """The logged model that a URI names.

    Raises:
        UsageError: there is none.
    """
    named = parse_model_uri(uri)
    try:
        model = _find(client, named)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"}:
            raise storage_error("the tracking store", mlflow.get_tracking_uri(), error) from None
        raise UsageError(f"model must be in this tracking store, got {uri}: {one_line(error, most=300)}") from None
    if model is None or model.status != LoggedModelStatus.READY:
        raise UsageError(f"model must be in this tracking store, whole, got {uri}, which is not")
    return model


def _find(client: MlflowClient, named: dict[str, str]) -> Entity | None:
    if "run" in named:
        return find_logged_model(client, client.get_run(named["run"]), named["of"])
    if "id" in named:
        return client.get_logged_model(named["id"])
    source = MODEL_URI.fullmatch(_version(client, named).source or "")  # SQL registries leave model_id out
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
    if Tag.FILE_DIGESTS not in found.tags:
        raise UsageError(
            f"model must have the digests of its files, which runs of this project log with it: {uri} "
            f"({found.model_id}) has none; train it again"
        )
    return dict(json.loads(found.tags[Tag.FILE_DIGESTS]))


def _downloaded(found: Entity, uri: str, temporary: str) -> Path:
    try:
        return Path(download_artifacts(artifact_uri=found.artifact_location, dst_path=temporary))
    except Exception as error:  # noqa: BLE001 - each kind of store raises its own
        raise storage_error(f"the files of {uri}", found.artifact_location, error) from None


def _archive(kept: dict[str, str], uri: str) -> str:
    names = [name for name in kept if name.endswith(ARCHIVE)]
    if len(names) != 1:
        raise UsageError(f"model must hold one Keras archive, got {uri} with {len(names)}")
    return names[0]


BATCH = 256  # images: more are no faster


def predictor(model: LoggedModel) -> Predict:
    """The model's probabilities, traced once: `Model.predict` sets up a pipeline anew for each call."""
    import tensorflow as tf

    pixels = tf.TensorSpec((None, *model.image_shape), tf.float32)
    call = tf.function(lambda images: model.model(images, training=False), input_signature=[pixels])

    def predict(images: Images) -> npt.NDArray[np.float32]:
        batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        return np.concatenate([call(batch.astype(np.float32)).numpy() for batch in batches])

    return predict
