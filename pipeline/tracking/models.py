"""Logged models: find one by its URI, check its files against their digests, and load it.

Nothing of the model is run, not even the Python file of a registered one: its Keras archive is read in safe mode. The
digests that its files are checked against are held by the tracking server, so that whoever can write to the artifact
store alone cannot exchange a model.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.entities import LoggedModelStatus
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from pipeline.config.commands import LATEST, MODEL_URI, RUN_ID, parse_model_uri
from pipeline.evaluation.corruptions import Images
from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import changed_files
from pipeline.runtime.imports import slow_imports
from pipeline.runtime.text import join_names, one_line
from pipeline.runtime.urls import storage_error
from pipeline.tracking.client import NotFound, Rejected, Run, TrackingClient, TrackingError, tracking_uri
from pipeline.tracking.tags import Tag

if TYPE_CHECKING:
    import keras

# Names of a run's logged models
MODEL = "model"  # the network in MLflow's TensorFlow flavour
SERVED = "served"  # the same as it is registered: it answers with class names
CALIBRATED = "calibrated"  # the served one with calibrated probabilities

ARCHIVE_SUFFIX = ".keras"
# Images predicted at once; more are no faster.
BATCH_SIZE = 256


@dataclass(frozen=True)
class LoggedModel:
    """A loaded model, its classes, and the run that trained it."""

    model: "keras.Model"  # raw pixels (b, height, width, channels), 0 to 255 -> probabilities (b, classes)
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (height, width, channels)
    resize: str  # how images of another size were resized in training, see `resize_to`
    run_id: str  # of the run that trained it
    model_id: str  # m-...

    def predict_proba(self, images: Images) -> npt.NDArray[np.float32]:
        """Return the probabilities (n, classes) of images (n, height, width, channels), pixels 0 to 255."""
        batches = (images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE))
        return np.concatenate([self._traced(batch.astype(np.float32)).numpy() for batch in batches])

    @cached_property
    def _traced(self) -> Any:
        """Return the network as one graph, traced once: `keras.Model.predict` sets up a data pipeline in each call."""
        import tensorflow as tf  # not above: it takes seconds, and the registry imports this module without need of it

        pixels = tf.TensorSpec((None, *self.image_shape), tf.float32)
        return tf.function(lambda images: self.model(images, training=False), input_signature=[pixels], autograph=False)


def load_model(client: TrackingClient, uri: str) -> LoggedModel:
    """Load the model at models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID or runs:/RUN_ID/NAME.

    Raises:
        UsageError: There is no such model, it was not logged by a run of this program, or its files are not those that
            were logged.
    """
    found = find_model(client, uri)
    digests = _logged_digests(found, uri)
    # Keras imports TensorFlow, which takes seconds: not before a model that does not exist has been refused.
    with slow_imports():
        import keras

    with TemporaryDirectory() as temporary:
        folder = _download(client, found, uri, Path(temporary))
        # before anything of them is read
        if changed := changed_files(folder, digests):
            raise UsageError(
                f"a model's files must be those that its run logged: of {uri} ({found.model_id}), by their SHA-256, "
                f"these are not: {join_names(changed)}; find out who changed the artifact store, or train the model "
                "again"
            )
        metadata = Model.load(str(folder / "MLmodel")).metadata or {}
        model = keras.saving.load_model(folder / _archive_name(digests, uri), compile=False, safe_mode=True)
    return LoggedModel(
        model,
        classes=tuple(metadata["classes"]),
        image_shape=tuple(model.input_shape[1:]),
        resize=str(metadata["resize"]),
        run_id=str(found.source_run_id),
        model_id=found.model_id,
    )


def find_model(client: TrackingClient, uri: str) -> mlflow.entities.LoggedModel:
    """Return MLflow's entry of the logged model that a URI names.

    Raises:
        UsageError: There is none, or its files have not all been logged.
    """
    parts = parse_model_uri(uri)
    try:
        model = _find_by_parts(client, parts)
    except (NotFound, Rejected) as error:
        raise UsageError(f"model must be in this tracking store, got {uri}: {one_line(error, most=300)}") from None
    except TrackingError as error:
        raise storage_error("the tracking store", tracking_uri(), error) from None
    if model is None or model.status != LoggedModelStatus.READY:
        raise UsageError(f"model must be in this tracking store, and complete, got {uri}, which is not")
    return model


def resolve_model_uri(client: TrackingClient, model: str) -> str:
    """Return the URI of the model that a person names by a URI, the id of its run, or as the latest.

    Raises:
        UsageError: The latest is asked for, and the present experiment has no model.
    """
    if model == LATEST:
        return latest_model_uri(client)
    return f"runs:/{model}/{MODEL}" if RUN_ID.fullmatch(model) else model


def latest_model_uri(client: TrackingClient) -> str:
    """Return the URI of the newest model of this program in the present experiment, of a run that is not deleted.

    Raises:
        UsageError: It has none.
    """
    experiment_id = client.experiment_id()
    model = client.latest_logged_model(experiment_id, MODEL, tag=Tag.FILE_DIGESTS)
    if model is None:
        name = client.experiment_name(experiment_id)
        raise UsageError(f"model=latest must find a logged model: experiment {name} has none; train first")
    return str(model.model_uri)


def read_mlmodel(client: TrackingClient, model: mlflow.entities.LoggedModel) -> Model:
    """Return what MLflow has written down of a logged model: signature and metadata. Its files are not checked.

    MLflow's `get_model_info` does the same, and leaves a temporary file of each model in a store that is not local.
    """
    with TemporaryDirectory() as folder:
        return Model.load(str(client.download(f"{model.artifact_location}/MLmodel", Path(folder))))


def logged_metadata(client: TrackingClient, model: mlflow.entities.LoggedModel) -> dict[str, Any]:
    """Return what was logged with a model, whose files need not have been checked.

    Returns:
        `classes`, their names; `image_size`, [height, width]; and `resize`, see `resize_to`. Empty for a model that
        this program has not logged.
    """
    return read_mlmodel(client, model).metadata or {}


def logged_splits(client: TrackingClient, run_id: str) -> tuple[str, dict[str, str]]:
    """Return the fingerprint of a run's data, and the digest of each of its splits by what it was for.

    Both are empty where the run has been removed, or where one above it has logged them, as for those of a search.
    """
    try:
        run = client.get_run(run_id)
    except NotFound:
        return "", {}
    return run.data.tags.get(Tag.DATA_FINGERPRINT, ""), split_digests(run)


def split_digests(run: Run) -> dict[str, str]:
    """Return the digest of each split of the data that a run has logged, by what it was for."""
    return {
        tag.value: one.dataset.digest
        for one in (run.inputs.dataset_inputs if run.inputs else ())
        for tag in one.tags
        if tag.key == MLFLOW_DATASET_CONTEXT
    }


def _find_by_parts(client: TrackingClient, parts: dict[str, str]) -> mlflow.entities.LoggedModel | None:
    """Return the logged model that the parts of a URI name, see `parse_model_uri`."""
    if "run" in parts:
        return client.find_logged_model(client.get_run(parts["run"]), parts["of"])
    if "id" in parts:
        return client.get_logged_model(parts["id"])
    if "alias" in parts:
        version = client.get_model_version_by_alias(parts["name"], parts["alias"])
    else:
        version = client.get_model_version(parts["name"], parts["version"])
    # MLflow's SQL registries leave a version's model_id empty: its source has it
    source = MODEL_URI.fullmatch(version.source or "")
    if source is None or source["run"]:
        return None
    # that of a copy which MLflow has made, in its UI for example, is the version that was copied
    return _find_by_parts(client, {part: value for part, value in source.groupdict().items() if value})


def _logged_digests(model: mlflow.entities.LoggedModel, uri: str) -> dict[str, str]:
    """Return the SHA-256 digests of a model's files, by path, as the tracking server holds them."""
    if Tag.FILE_DIGESTS not in model.tags:
        raise UsageError(
            f"model must have the digests of its files, which runs of this project log with it: {uri} "
            f"({model.model_id}) has none; train it again"
        )
    return dict(json.loads(model.tags[Tag.FILE_DIGESTS]))


def _download(client: TrackingClient, model: mlflow.entities.LoggedModel, uri: str, folder: Path) -> Path:
    try:
        return client.download(model.artifact_location, folder)
    except Exception as error:  # noqa: BLE001 - each kind of artifact store raises its own
        raise storage_error(f"the files of {uri}", model.artifact_location, error) from None


def _archive_name(digests: dict[str, str], uri: str) -> str:
    """Return the path of the one Keras archive among a model's files."""
    names = [name for name in digests if name.endswith(ARCHIVE_SUFFIX)]
    if len(names) != 1:
        raise UsageError(f"model must hold one Keras archive, got {uri} with {len(names)}")
    return names[0]
