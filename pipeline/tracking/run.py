"""A run in MLflow from its opening to its end, whatever ends it; what it leaves there is tracked_run.py's."""

import hashlib
import json
import logging
import os
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.types import Schema, TensorSpec
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES

from pipeline.runtime import signals
from pipeline.runtime.errors import Stopped
from pipeline.runtime.parent_watch import PROJECT_RUN_ID_ENV
from pipeline.runtime.process import ProcessIdentity, this_process
from pipeline.runtime.retry import retry
from pipeline.runtime.signals import handle_signals
from pipeline.runtime.urls import mask_password
from pipeline.tracking import ownership, registry, stale_runs
from pipeline.tracking.models import MODEL, SERVED, find_logged_model
from pipeline.tracking.outbox import spool
from pipeline.tracking.outbox.delivery import reason, send_pending
from pipeline.tracking.outbox.outbox import PATIENCE_SECONDS, PAUSES, Outbox
from pipeline.tracking.outbox.records import FileWriter, is_permanent
from pipeline.tracking.ownership import TAG_CHARACTERS, require_server
from pipeline.tracking.system_metrics import system_metrics as system_metrics_of
from pipeline.tracking.tags import Role, RunOutcome, Tag, run_outcome_tags

PARAM_CHARACTERS = 6000  # MLflow refuses longer values


class TrackedRun:
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
        with ownership.require_server():
            return retry(
                self._recall,
                is_transient=lambda error: isinstance(error, MlflowException) and not is_permanent(error),
                seconds=PATIENCE_SECONDS,
                pauses=PAUSES,
            )

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
        if given and not _is_generated_name(given):
            return given
        self.tags({Tag.RUN_NAME: name})
        return name

    def describe(self, text: str) -> None:
        """The description that MLflow's page of the run begins with, in Markdown."""
        self.tags({Tag.DESCRIPTION: text})

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
        self.outbox.put("files", fill=spool.save_figure(path, figure))

    def text(self, path: str, text: str) -> None:
        self.outbox.put("files", fill=spool.write_text(path, text))

    def file(self, path: str, source: Path) -> None:
        self.outbox.put("files", fill=spool.copy_file(path, source))

    def table(self, path: str, table: pd.DataFrame) -> None:
        self.text(path, table.to_csv(index=False))

    def model(self, save: FileWriter) -> None:
        """Log the model that `save` writes into a folder, unless the run was interrupted after that."""
        if not self._has_model:
            self.outbox.put("model", {"name": MODEL}, fill=save)
            self._has_model = True

    def register(self, name: str, save: FileWriter, *, classes: Sequence[str], tags: Mapping[str, str]) -> None:
        """Log the model that `save` writes as it is served; once the run has ended well it is registered.

        Args:
            name: of the registered model; this becomes a version of it.
            save: writes it into a folder.
            classes: names in the order of the model's probabilities.
            tags: of the version.
        """
        self.outbox.put("model", {"name": SERVED}, fill=save)
        names = hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()
        self._version = {"register_as": name, "tags": {**tags, Tag.CLASSES_DIGEST: names}}

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
        self.model_uri = tags.get(Tag.REGISTERED, self.model_uri)
        return registry.describe(tags)

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
                model = find_logged_model(client, client.get_run(self.id))
                self.model_uri = model.model_uri if model else None

    def end(self, ended: str, reason: str) -> None:
        """Tell how the run ended: finished, failed or stopped, and why; unless another process has gone on with it."""
        if self.taken:
            return
        tags = run_outcome_tags(RunOutcome(ended), reason[:TAG_CHARACTERS])
        said = {"tags": tags, "status": RunOutcome(ended).status, "end_time": int(1000 * time.time())}
        process = this_process().tags() if self._found else None
        for run_id in filter(None, (self.id, self.below)):
            self.outbox.put("end", {**said, "process": process}, run_id=run_id)
        if self._version and ended == "finished":
            self.outbox.put("version", self._version)


def _is_generated_name(name: str) -> bool:
    """Whether MLflow invented this name (`bold-ant-123`) because nobody gave one."""
    words = name.split("-")
    return len(words) == 3 and words[0] in _GENERATOR_PREDICATES and words[1] in _GENERATOR_NOUNS and words[2].isdigit()


STOP_SECONDS = 2.0  # of the ten in which a run that is asked to stop ends, for what is still to be told


@contextmanager
def start_run(*, system_metrics: bool, resumed: str | None = None) -> Iterator[TrackedRun]:
    """The run that `mlflow run` opened, else a new one; closed and told why it ended whatever happens within.

    Status FINISHED, FAILED for an exception, KILLED for a signal; tags `run.outcome` (finished, failed, stopped) and
    `run.outcome_reason`, since an `mlflow run` that outlives this process writes FAILED over KILLED.

    Args:
        resumed: id of a run that is to be opened again instead.

    Raises:
        UsageError: the run that `mlflow run` opened is not in the tracking store that this process sees.
    """
    with handle_signals():
        opened = TrackedRun(*_open_run(resumed))
        log = opened.system if system_metrics else None
        with _closed(opened), system_metrics_of(opened.id, log) if log else nullcontext():
            yield opened


@contextmanager
def attach_run(run_id: str) -> Iterator[TrackedRun]:
    """The run that a driver has begun, closed like `run`; MLflow need not answer, as the driver tells what is left."""
    with handle_signals(), _closed(TrackedRun(run_id), away_seconds=STOP_SECONDS) as opened:
        yield opened


@contextmanager
def _closed(opened: TrackedRun, *, away_seconds: float = PATIENCE_SECONDS) -> Iterator[TrackedRun]:
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
def own_run(opened: TrackedRun, *, below: str) -> Iterator[list[str]]:
    """Within it a run that no driver watches says whose it is and that it lives.

    The run that `mlflow run` opened, if that is another, is put below it under the name `below`, and ends with it.
    Yields a line for each other run that left something to be told, and for each other run of the experiment that has
    lost its process: those of this host are closed.

    Raises:
        UsageError: the tracking store does not answer.
    """
    client = mlflow.MlflowClient()

    def take(process: ProcessIdentity) -> None:
        opened.taken = True
        signals.stop(f"as {process} has gone on with the run")

    with handle_signals() as stopping:
        with require_server():
            ownership.claim_run(client, opened.id, {Tag.ROLE: Role.RUN})
            child = os.environ.pop(PROJECT_RUN_ID_ENV, opened.id)
            if child != opened.id:
                ownership.set_parent(client, child, parent=opened.id, name=below, role=Role.RESUME)
                opened.below = child
            lines = [*send_pending(), *stale_runs.close_stale_runs(client, opened.experiment_id)]
        with ownership.heartbeat_run(client, opened.id, taken=take):
            stopping.last_words = lambda stopped: _last_words(opened, stopped)
            yield lines


def _last_words(opened: TrackedRun, stopped: Stopped) -> None:
    """What is told of a run whose main thread does not come to it."""
    opened.end("stopped", f"by {stopped}")
    opened.outbox.flush(at_most=STOP_SECONDS)


def _open_run(run_id: str | None) -> tuple[str, mlflow.entities.Run]:
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its INFO tells of tables and monitors
    with require_server():
        found = ownership.begin_run(mlflow.MlflowClient(), run_id)
    return found.info.run_id, found


def next_steps(opened: TrackedRun) -> list[str]:
    """Where the plots of a run lie and how to see and serve it: lines for the terminal."""
    uri = mlflow.get_tracking_uri()
    page = f"#/experiments/{opened.experiment_id}/runs/{opened.id}"
    # beside this Python, as the person's shell need not have it on PATH
    command = shlex.quote(str(Path(sys.executable).parent / "mlflow"))
    lines = [kept] if (kept := opened.outbox.left()) else []
    if not opened.artifacts.startswith("mlflow-artifacts:"):  # which nobody can open
        lines.append(f"plots    {opened.artifacts}/plots")
    if uri.startswith(("http://", "https://")):
        lines.append(f"compare  {mask_password(uri).rstrip('/')}/{page}")
    else:
        lines.append(f"compare  {command} ui --backend-store-uri {shlex.quote(mask_password(uri))}")
        lines.append(f"         then http://127.0.0.1:5000/{page}")
    if said := opened.registered():
        lines.append(f"registry {said}")
    if opened.model_uri:
        store = f"MLFLOW_TRACKING_URI={shlex.quote(mask_password(uri))}"
        lines.append(f"serve    {store} {command} models serve -m {opened.model_uri} --env-manager local")
    return lines
