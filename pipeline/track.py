"""What a run leaves in MLflow, and in which order; the one door to MLflow for runs."""

import logging
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
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
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES

from pipeline.errors import UsageError
from pipeline.interrupt import Stopped, stoppable
from pipeline.store_urls import masked, unusable

PARAM_CHARACTERS = 6000  # MLflow refuses longer values
TAG_CHARACTERS = 5000  # a tag may hold 8000


class Run:
    """An open MLflow run: each method leaves one kind of thing in it."""

    def __init__(self, active: mlflow.ActiveRun) -> None:
        self.id: str = active.info.run_id
        self.experiment_id: str = active.info.experiment_id
        self.artifacts: str = active.info.artifact_uri
        self.model_uri: str | None = None
        self._model_id: str | None = None

    def name(self, name: str) -> str:
        """Name the run, unless a person has named it; returns the name that it bears."""
        given = mlflow.get_run(self.id).info.run_name
        if given and not _made_up(given):
            return given
        mlflow.set_tag("mlflow.runName", name)
        return name

    def describe(self, text: str) -> None:
        """The description that MLflow's page of the run begins with, in Markdown."""
        mlflow.set_tag("mlflow.note.content", text)

    def tags(self, tags: Mapping[str, str]) -> None:
        mlflow.set_tags({name: value[:TAG_CHARACTERS] for name, value in tags.items()})

    def params(self, settings: Mapping[str, str]) -> None:
        """Log the settings that `mlflow run` has not logged before, in whatever spelling."""
        there = mlflow.get_run(self.id).data.params
        mlflow.log_params({k: v[:PARAM_CHARACTERS] for k, v in settings.items() if k not in there}, synchronous=True)

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
        mlflow.log_input(dataset, context=context)

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """The metrics of an epoch, counted from 1, in one call."""
        mlflow.log_metrics(dict(metrics), step=epoch, synchronous=True)

    def results(self, metrics: Mapping[str, float]) -> None:
        """The figures of the whole run, and of its model where there is one."""
        mlflow.log_metrics(dict(metrics), model_id=self._model_id, synchronous=True)

    def figure(self, path: str, figure: Figure) -> None:
        mlflow.log_figure(figure, path)

    def text(self, path: str, text: str) -> None:
        mlflow.log_text(text, path)

    def table(self, path: str, table: pd.DataFrame) -> None:
        mlflow.log_text(table.to_csv(index=False), path)

    def model(self, model: keras.Model, *, example: npt.NDArray[np.float32], classes: Sequence[str]) -> None:
        """Log a Keras model of stock layers with what serving needs.

        Args:
            example: raw pixels (n, height, width, channels) float32, 0 to 255.
            classes: names in the order of the model's probabilities.
        """
        signature = ModelSignature(
            Schema([TensorSpec(np.dtype(np.float32), (-1, *example.shape[1:]))]),
            Schema([TensorSpec(np.dtype(np.float32), (-1, len(classes)))]),
        )
        keras.config.disable_interactive_logging()  # MLflow tries the example, and Keras would draw a bar for it
        logged = mlflow.tensorflow.log_model(
            model,
            name="model",
            signature=signature,
            input_example=example,
            # named here because finding them out by running the model takes MLflow half a minute
            pip_requirements=[
                f"{package}=={version(package)}" for package in ("mlflow", "tensorflow", "keras", "numpy")
            ],
            metadata={"classes": list(classes)},
        )
        self._model_id, self.model_uri = logged.model_id, logged.model_uri


@contextmanager
def run(*, system_metrics: bool) -> Iterator[Run]:
    """The run that `mlflow run` opened, else a new one; closed and told why it ended whatever happens within.

    Status FINISHED, FAILED for an exception, KILLED for Ctrl-C or SIGTERM; tags `ended` (finished, failed, stopped) and
    `ended.reason`, since an `mlflow run` that outlives this process writes FAILED over KILLED.

    Raises:
        UsageError: the run that `mlflow run` opened is not in the tracking store that this process sees.
    """
    with stoppable():
        active = _open(system_metrics)
        try:
            yield Run(active)
        except Stopped as stopped:
            _close("KILLED", "stopped", f"by {stopped}")
            raise
        except BaseException as error:
            with suppress(Exception):  # on a full disk, say; the run must be closed all the same
                mlflow.log_text("".join(traceback.format_exception(error)), "traceback.txt")
            _close("FAILED", "failed", f"{type(error).__name__}: {error}")
            raise
        else:
            _close("FINISHED", "finished", "")


def _open(system_metrics: bool) -> mlflow.ActiveRun:
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its INFO tells of tables and monitors
    try:
        return mlflow.start_run(log_system_metrics=system_metrics)
    except Exception as error:  # each kind of store raises its own
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if isinstance(error, MlflowException) and re.match(r"sqlite:///[^/]", uri):
            raise UsageError(
                "a sqlite path in MLFLOW_TRACKING_URI must be absolute, since the project runs in its own folder: "
                f"got {uri}; try sqlite:///{Path.cwd()}/mlflow.db"
            ) from error
        raise unusable("the tracking store", mlflow.get_tracking_uri(), error) from None


def _close(status: str, ended: str, reason: str) -> None:
    mlflow.set_tags({"ended": ended} | ({"ended.reason": reason[:TAG_CHARACTERS]} if reason else {}))
    mlflow.end_run(status)


def _made_up(name: str) -> bool:
    """Whether MLflow invented this name (`bold-ant-123`) because nobody gave one."""
    words = name.split("-")
    return len(words) == 3 and words[0] in _GENERATOR_PREDICATES and words[1] in _GENERATOR_NOUNS and words[2].isdigit()


def next_steps(opened: Run) -> list[str]:
    """Where the plots of a run lie and how to see and serve it: lines for the terminal."""
    uri = mlflow.get_tracking_uri()
    page = f"#/experiments/{opened.experiment_id}/runs/{opened.id}"
    # beside this Python, as the person's shell need not have it on PATH
    command = shlex.quote(str(Path(sys.executable).parent / "mlflow"))
    lines = [f"plots    {opened.artifacts}/plots"]
    if uri.startswith(("http://", "https://")):
        lines.append(f"compare  {masked(uri).rstrip('/')}/{page}")
    else:
        lines.append(f"compare  {command} ui --backend-store-uri {shlex.quote(masked(uri))}")
        lines.append(f"         then http://127.0.0.1:5000/{page}")
    if opened.model_uri:
        store = f"MLFLOW_TRACKING_URI={shlex.quote(masked(uri))}"
        lines.append(f"serve    {store} {command} models serve -m {opened.model_uri} --env-manager local")
    return lines
