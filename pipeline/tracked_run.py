"""An open MLflow run: each method leaves one kind of thing in it, through an outbox that no outage stops."""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import keras
import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import LoggedModelStatus
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES

from pipeline.lifetime import ownership
from pipeline.lifetime.ownership import TAG_CHARACTERS
from pipeline.lifetime.process import this_process
from pipeline.outbox import files, registration
from pipeline.outbox.asking import patiently
from pipeline.outbox.delivery import reason
from pipeline.outbox.logged import MODEL, SERVED, model_of
from pipeline.outbox.outbox import Outbox
from pipeline.serving import saving
from pipeline.serving.saving import requirements

PARAM_CHARACTERS = 6000  # MLflow refuses longer values


class Run:
    """What is told of a run under way."""

    def __init__(self, run_id: str, found: mlflow.entities.Run | None = None) -> None:
        """`found`: what MLflow holds of the run; None: nothing but what its driver began it with."""
        self.id = run_id
        self.experiment_id: str = found.info.experiment_id if found else ""
        self.artifacts: str = found.info.artifact_uri if found else ""
        self.model_uri: str | None = None
        self.below: str | None = None  # id of the run that `mlflow run` opened, where this one is another
        self.taken = False  # whether another process has gone on with it
        self.outbox = Outbox(run_id)
        self._found = found
        self._has_model = False
        self._version: dict[str, object] | None = None  # what it is to become in the registry
        self._known: dict[tuple[str, int], float] = {}  # points that the run has

    def recall(self) -> str:
        """Learn what an interrupted run holds, since MLflow would keep a second point beside the first.

        Returns:
            The run's name.

        Raises:
            UsageError: MLflow does not answer, and not a while later either.
        """
        self.outbox.flush()  # what the interrupted process has left may still be on its way
        with ownership.answering():
            return patiently(self._recall)

    def _recall(self) -> str:
        client = mlflow.MlflowClient()
        found = client.get_run(self.id)
        for name in found.data.metrics:
            if not name.startswith("system/"):  # which go on after the last step
                points = client.get_metric_history(self.id, name)
                self._known |= {(name, point.step): point.value for point in points}
        for output in found.outputs.model_outputs if found.outputs else ():
            model = client.get_logged_model(output.model_id)
            if model.status == LoggedModelStatus.READY and model.name == MODEL:
                self._has_model, self.model_uri = True, model.model_uri
        return found.info.run_name

    def name(self, name: str) -> str:
        """Name the run, unless a person has named it; returns the name that it bears."""
        given = self._found.info.run_name if self._found else ""
        if given and not _made_up(given):
            return given
        self.tags({"mlflow.runName": name})
        return name

    def describe(self, text: str) -> None:
        """The description that MLflow's page of the run begins with, in Markdown."""
        self.tags({"mlflow.note.content": text})

    def tags(self, tags: Mapping[str, str]) -> None:
        self.outbox.put("batch", {"tags": {name: value[:TAG_CHARACTERS] for name, value in tags.items()}})

    def params(self, settings: Mapping[str, str]) -> None:
        """Log the settings that `mlflow run` has not logged before, in whatever spelling."""
        there = self._found.data.params if self._found else {}
        self.outbox.put("batch", {"params": {k: v[:PARAM_CHARACTERS] for k, v in settings.items() if k not in there}})

    def dataset(self, *, name: str, source: str, digest: str, context: str, shape: Sequence[int]) -> None:
        """An input of the run: a path or, for data that a package brings, who brings it.

        Args:
            digest: of the content, at most 36 characters.
            context: train, validation or test.
            shape: of one image, (height, width, channels).
        """
        with warnings.catch_warnings(action="ignore"):  # MLflow knows two names for a local path and warns of that
            origin = resolve_dataset_source(source) if os.path.isabs(source) else CodeDatasetSource({"source": source})
        images = TensorSpec(np.dtype(np.uint8), (-1, *shape), "image")
        dataset = MetaDataset(origin, name=name, digest=digest, schema=Schema([images]))  # type: ignore[abstract]
        self.outbox.put("dataset", {**dataset._to_mlflow_entity().to_dictionary(), "context": context})

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> set[str]:
        """The metrics of an epoch, counted from 1, in one call.

        Returns:
            Names of those that the run held already, with another value, which stays.

        Raises:
            MlflowException: MLflow has refused what it was told before: the run has been deleted, say.
        """
        self.outbox.check()
        others = {name for name, value in metrics.items() if self._known.get((name, epoch), value) != value}
        self._metrics(metrics, epoch)
        return others

    def results(self, metrics: Mapping[str, float]) -> None:
        """The figures of the whole run, and of its model where there is one."""
        self._metrics(metrics, 0, of_model=self._has_model)

    def system(self, metrics: Mapping[str, float], step: int) -> None:
        """What the machine does."""
        self._metrics(metrics, step)

    def _metrics(self, metrics: Mapping[str, float], step: int, *, of_model: bool = False) -> None:
        new = {name: value for name, value in metrics.items() if (name, step) not in self._known}
        self._known |= {(name, step): value for name, value in new.items()}
        if new:
            now = int(1000 * time.time())
            points = [[name, float(value), now, step] for name, value in new.items()]
            self.outbox.put("batch", {"metrics": points, "once": True, "of_model": of_model})

    def figure(self, path: str, figure: Figure) -> None:
        self.outbox.put("files", fill=files.figure(path, figure))

    def text(self, path: str, text: str) -> None:
        self.outbox.put("files", fill=files.text(path, text))

    def file(self, path: str, source: Path) -> None:
        self.outbox.put("files", fill=files.copy(path, source))

    def table(self, path: str, table: pd.DataFrame) -> None:
        self.text(path, table.to_csv(index=False))

    def model(self, model: keras.Model, *, example: npt.NDArray[np.float32], classes: Sequence[str]) -> None:
        """Log a Keras model of stock layers with what serving needs, unless the run was interrupted after that.

        Args:
            example: raw pixels (n, height, width, channels) float32, 0 to 255.
            classes: names in the order of the model's probabilities.
        """
        if self._has_model:
            return
        save = partial(
            mlflow.tensorflow.save_model,
            model,
            signature=ModelSignature(
                Schema([TensorSpec(np.dtype(np.float32), (-1, *example.shape[1:]))]),
                Schema([TensorSpec(np.dtype(np.float32), (-1, len(classes)))]),
            ),
            input_example=example,
            pip_requirements=requirements(),
            metadata={"classes": list(classes)},
        )
        self.outbox.put("model", {"name": MODEL}, fill=save)
        self._has_model = True

    def register(
        self,
        name: str,
        model: keras.Model,
        *,
        example: npt.NDArray[np.uint8],
        classes: Sequence[str],
        tags: Mapping[str, str],
    ) -> None:
        """Log a Keras model of stock layers as it is served; once the run has ended well it is registered.

        Args:
            name: of the registered model; this becomes a version of it.
            example: raw pixels (height, width, channels).
            classes: names in the order of the model's probabilities.
            tags: of the version.
        """
        save = partial(saving.save, model=model, example=example, classes=classes)
        self.outbox.put("model", {"name": SERVED}, fill=save)
        names = hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()
        self._version = {"register_as": name, "tags": {**tags, registration.CLASSES: names}}

    def registered(self) -> str | None:
        """What became of the registration that was asked for, after the run's end; None if none was.

        `model_uri` is the version's from then on.
        """
        if self._version is None:
            return None
        if self.outbox.left():
            return "not registered yet: it will be when what is kept here has been sent"
        try:
            self.outbox.check()
            tags = mlflow.MlflowClient().get_run(self.id).data.tags
        except Exception as error:  # noqa: BLE001 - each kind of store raises its own
            return f"not registered: {reason(error)}"
        self.model_uri = tags.get(registration.URI, self.model_uri)
        return registration.told(tags)

    def settle(self, away_seconds: float) -> None:
        """Wait until MLflow has what it was told, or has not answered for so long.

        Raises:
            MlflowException: it has refused something.
        """
        left = self.outbox.flush(away_seconds=away_seconds)
        self.outbox.check()
        if self._has_model and not left and self.model_uri is None:
            with suppress(Exception):  # it is only shown
                client = mlflow.MlflowClient()
                model = model_of(client, client.get_run(self.id))
                self.model_uri = model.model_uri if model else None

    def end(self, ended: str, reason: str) -> None:
        """Tell how the run ended: finished, failed or stopped, and why; unless another process has gone on with it."""
        if self.taken:
            return
        tags = {"ended": ended} | ({"ended.reason": reason[:TAG_CHARACTERS]} if reason else {})
        said = {"tags": tags, "status": ownership.STATUS[ended], "end_time": int(1000 * time.time())}
        process = this_process().tags() if self._found else None
        for run_id in filter(None, (self.id, self.below)):
            self.outbox.put("end", {**said, "process": process}, run_id=run_id)
        if self._version and ended == "finished":
            self.outbox.put("version", self._version)


def _made_up(name: str) -> bool:
    """Whether MLflow invented this name (`bold-ant-123`) because nobody gave one."""
    words = name.split("-")
    return len(words) == 3 and words[0] in _GENERATOR_PREDICATES and words[1] in _GENERATOR_NOUNS and words[2].isdigit()
