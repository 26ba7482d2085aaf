"""What a run leaves in MLflow, and in which order; the one door to MLflow for runs."""

import logging
import os
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
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
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES

from pipeline.lifetime import interrupt, liveness, ownership
from pipeline.lifetime.interrupt import Stopped, stoppable
from pipeline.lifetime.ownership import TAG_CHARACTERS, answering
from pipeline.lifetime.process import Process, this_process
from pipeline.outbox import files
from pipeline.outbox.delivery import deliver
from pipeline.outbox.outbox import PATIENCE_SECONDS, Outbox
from pipeline.outbox.sending import model_of
from pipeline.store_urls import masked
from pipeline.system_metrics import system_metrics as system_metrics_of

STOP_SECONDS = 2.0  # of the ten in which a run that is asked to stop ends, for what is still to be told
PARAM_CHARACTERS = 6000  # MLflow refuses longer values


class Run:
    """An open MLflow run: each method leaves one kind of thing in it, through an outbox that no outage stops."""

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
        self._known: dict[tuple[str, int], float] = {}  # points that the run has

    def recall(self) -> str:
        """Learn what an interrupted run holds, since MLflow would keep a second point beside the first.

        Returns:
            The run's name.
        """
        client = mlflow.MlflowClient()
        found = client.get_run(self.id)
        for name in found.data.metrics:
            if not name.startswith("system/"):  # which go on after the last step
                points = client.get_metric_history(self.id, name)
                self._known |= {(name, point.step): point.value for point in points}
        for output in found.outputs.model_outputs if found.outputs else ():
            model = client.get_logged_model(output.model_id)
            if model.status == LoggedModelStatus.READY:
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
            # named here because finding them out by running the model takes MLflow half a minute
            pip_requirements=[
                f"{package}=={version(package)}" for package in ("mlflow", "tensorflow", "keras", "numpy")
            ],
            metadata={"classes": list(classes)},
        )
        self.outbox.put("model", fill=save)
        self._has_model = True

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
        opened = Run(*_open(resumed))
        log = opened.system if system_metrics else None
        with _closed(opened), system_metrics_of(opened.id, log) if log else nullcontext():
            yield opened


@contextmanager
def trial(run_id: str) -> Iterator[Run]:
    """The run that a driver has begun, closed like `run`; MLflow need not answer, as the driver tells what is left."""
    with stoppable(), _closed(Run(run_id), away_seconds=STOP_SECONDS) as opened:
        yield opened


@contextmanager
def _closed(opened: Run, *, away_seconds: float = PATIENCE_SECONDS) -> Iterator[Run]:
    """Within it a run is under way; it is told why it ended whatever happens."""
    try:
        yield opened
        opened.settle(away_seconds)
        opened.end("finished", "")
    except Stopped as stopped:
        opened.end("stopped", f"by {stopped}")
        opened.outbox.flush(at_most=STOP_SECONDS)
        raise
    except BaseException as error:
        with suppress(Exception):  # on a full disk, say; the run must be closed all the same
            opened.text("traceback.txt", "".join(traceback.format_exception(error)))
        opened.end("failed", f"{type(error).__name__}: {error}")
        opened.outbox.flush(away_seconds=away_seconds)
        raise
    else:
        opened.outbox.flush(away_seconds=STOP_SECONDS)
    finally:
        opened.outbox.close()


@contextmanager
def owned(opened: Run, *, below: str) -> Iterator[list[str]]:
    """Within it a run that no driver watches says whose it is and that it lives.

    The run that `mlflow run` opened, if that is another, is put below it under the name `below`, and ends with it.
    Yields a line for each other run that left something to be told, and for each other run of the experiment that has
    lost its process: those of this host are closed.

    Raises:
        UsageError: the tracking store does not answer.
    """
    client = mlflow.MlflowClient()

    def take(process: Process) -> None:
        opened.taken = True
        interrupt.stop(f"as {process} has gone on with the run")

    with stoppable() as stopping:
        with answering():
            ownership.claim(client, opened.id, {"role": "run"})
            child = os.environ.pop(ownership.OPENED, opened.id)
            if child != opened.id:
                ownership.nest(client, child, parent=opened.id, name=below)
                opened.below = child
            lines = [*deliver(), *liveness.lost(client, opened.experiment_id)]
        with ownership.beating(client, opened.id, taken=take):
            stopping.last_words = lambda stopped: _last_words(opened, stopped)
            yield lines


def _last_words(opened: Run, stopped: Stopped) -> None:
    """What is told of a run whose main thread does not come to it."""
    opened.end("stopped", f"by {stopped}")
    opened.outbox.flush(at_most=STOP_SECONDS)


def _open(run_id: str | None) -> tuple[str, mlflow.entities.Run]:
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its INFO tells of tables and monitors
    with answering():
        found = ownership.begin(mlflow.MlflowClient(), run_id)
    return found.info.run_id, found


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
    lines = [kept] if (kept := opened.outbox.left()) else []
    lines.append(f"plots    {opened.artifacts}/plots")
    if uri.startswith(("http://", "https://")):
        lines.append(f"compare  {masked(uri).rstrip('/')}/{page}")
    else:
        lines.append(f"compare  {command} ui --backend-store-uri {shlex.quote(masked(uri))}")
        lines.append(f"         then http://127.0.0.1:5000/{page}")
    if opened.model_uri:
        store = f"MLFLOW_TRACKING_URI={shlex.quote(masked(uri))}"
        lines.append(f"serve    {store} {command} models serve -m {opened.model_uri} --env-manager local")
    return lines
