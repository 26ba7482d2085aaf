"""What a run leaves in MLflow, and in which order; the one door to MLflow for runs."""

import logging
import os
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
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES

from pipeline.lifetime import interrupt, liveness, ownership
from pipeline.lifetime.interrupt import Stopped, stoppable
from pipeline.lifetime.ownership import TAG_CHARACTERS
from pipeline.lifetime.process import Process
from pipeline.store_urls import masked, unusable

PARAM_CHARACTERS = 6000  # MLflow refuses longer values


class Run:
    """An open MLflow run: each method leaves one kind of thing in it."""

    def __init__(self, active: mlflow.ActiveRun) -> None:
        self.id: str = active.info.run_id
        self.experiment_id: str = active.info.experiment_id
        self.artifacts: str = active.info.artifact_uri
        self.model_uri: str | None = None
        self._model_id: str | None = None
        self.below: str | None = None  # id of the run that `mlflow run` opened, where this one is another
        self.taken = False  # whether another process has gone on with it
        self._known: dict[tuple[str, int], float] = {}  # points that the run has from before it was interrupted

    def recall(self) -> str:
        """Learn what an interrupted run holds, since MLflow would keep a second point beside the first.

        Returns:
            The run's name.
        """
        client = mlflow.MlflowClient()
        found = client.get_run(self.id)
        for name in found.data.metrics:
            if not name.startswith("system/"):  # which MLflow goes on with by itself
                points = client.get_metric_history(self.id, name)
                self._known |= {(name, point.step): point.value for point in points}
        for output in found.outputs.model_outputs if found.outputs else ():
            model = client.get_logged_model(output.model_id)
            if model.status == LoggedModelStatus.READY:
                self._model_id, self.model_uri = model.model_id, model.model_uri
        return found.info.run_name

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

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> set[str]:
        """The metrics of an epoch, counted from 1, in one call.

        Returns:
            Names of those that the run held already, with another value, which stays.
        """
        if new := self._unknown(metrics, epoch):
            mlflow.log_metrics(new, step=epoch, synchronous=True)
        return {name for name, value in metrics.items() if self._known.get((name, epoch), value) != value}

    def results(self, metrics: Mapping[str, float]) -> None:
        """The figures of the whole run, and of its model where there is one."""
        if new := self._unknown(metrics, 0):
            mlflow.log_metrics(new, model_id=self._model_id, synchronous=True)

    def _unknown(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if (name, step) not in self._known}

    def figure(self, path: str, figure: Figure) -> None:
        mlflow.log_figure(figure, path)

    def text(self, path: str, text: str) -> None:
        mlflow.log_text(text, path)

    def table(self, path: str, table: pd.DataFrame) -> None:
        mlflow.log_text(table.to_csv(index=False), path)

    def model(self, model: keras.Model, *, example: npt.NDArray[np.float32], classes: Sequence[str]) -> None:
        """Log a Keras model of stock layers with what serving needs, unless the run was interrupted after that.

        Args:
            example: raw pixels (n, height, width, channels) float32, 0 to 255.
            classes: names in the order of the model's probabilities.
        """
        if self._model_id:
            return
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
def run(*, system_metrics: bool, resumed: str | None = None) -> Iterator[Run]:
    """The run that `mlflow run` opened, else a new one; closed and told why it ended whatever happens within.

    Status FINISHED, FAILED for an exception, KILLED for a signal; tags `ended` (finished, failed, stopped) and
    `ended.reason`, since an `mlflow run` that outlives this process writes FAILED over KILLED.

    Args:
        resumed: id of a run that is to be opened again instead.

    Raises:
        UsageError: the run that `mlflow run` opened is not in the tracking store that this process sees.
    """
    with stoppable():
        opened = Run(_open(system_metrics, resumed))
        try:
            yield opened
        except Stopped as stopped:
            _close(opened, "stopped", f"by {stopped}")
            raise
        except BaseException as error:
            with suppress(Exception):  # on a full disk, say; the run must be closed all the same
                mlflow.log_text("".join(traceback.format_exception(error)), "traceback.txt")
            _close(opened, "failed", f"{type(error).__name__}: {error}")
            raise
        else:
            _close(opened, "finished", "")


@contextmanager
def owned(opened: Run, *, below: str) -> Iterator[list[str]]:
    """Within it a run that no driver watches says whose it is and that it lives.

    The run that `mlflow run` opened, if that is another, is put below it under the name `below`, and ends with it.
    Yields a line for each other run of the experiment that has lost its process: those of this host are closed.
    """
    client = mlflow.MlflowClient()
    ownership.claim(client, opened.id, {"role": "run"})
    child = os.environ.pop(ownership.OPENED, opened.id)
    if child != opened.id:
        ownership.nest(client, child, parent=opened.id, name=below)
        opened.below = child

    def take(process: Process) -> None:
        opened.taken = True
        interrupt.stop(f"as {process} has gone on with the run")

    with stoppable() as stopping, ownership.beating(client, opened.id, taken=take):
        stopping.last_words = lambda stopped: _tell_end(opened, "stopped", f"by {stopped}")
        yield liveness.lost(client, opened.experiment_id)


def _open(system_metrics: bool, run_id: str | None) -> mlflow.ActiveRun:
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its INFO tells of tables and monitors
    try:
        return mlflow.start_run(run_id=run_id, log_system_metrics=system_metrics)
    except Exception as error:  # noqa: BLE001 - each kind of store raises its own
        if isinstance(error, MlflowException):
            ownership.refuse_relative_store()
        raise unusable("the tracking store", mlflow.get_tracking_uri(), error) from None


def _close(opened: Run, ended: str, reason: str) -> None:
    if opened.taken:
        mlflow.end_run("RUNNING")  # as it is, under the other process
    else:
        _tell_end(opened, ended, reason)
        mlflow.end_run(ownership.STATUS[ended])


def _tell_end(opened: Run, ended: str, reason: str) -> None:
    client = mlflow.MlflowClient()
    for run_id in filter(None, (opened.id, opened.below)):
        ownership.end(client, run_id, ended, reason)


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
    lines = [] if opened.artifacts.startswith("mlflow-artifacts:") else [f"plots    {opened.artifacts}/plots"]
    if uri.startswith(("http://", "https://")):
        lines.append(f"compare  {masked(uri).rstrip('/')}/{page}")
    else:
        lines.append(f"compare  {command} ui --backend-store-uri {shlex.quote(masked(uri))}")
        lines.append(f"         then http://127.0.0.1:5000/{page}")
    if opened.model_uri:
        store = f"MLFLOW_TRACKING_URI={shlex.quote(masked(uri))}"
        lines.append(f"serve    {store} {command} models serve -m {opened.model_uri} --env-manager local")
    return lines
