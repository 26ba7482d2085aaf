"""How records reach MLflow, each once, even where an earlier try has arrived and its answer was lost."""

import errno
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import mlflow
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException, RestException
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from pipeline.runtime.files import sha256_files
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.models import find_logged_model
from pipeline.tracking.registry import register_version
from pipeline.tracking.tags import Tag

Kind = Literal["batch", "dataset", "files", "model", "end", "version", "others"]
FileWriter = Callable[[Path], None]  # puts files into a folder


@dataclass
class Record:
    """One thing that a run tells.

    The body of a `batch` holds metrics, as [name, value, milliseconds since the epoch, step], params and tags; `once`:
    a metric has one point a step; `of_model`: the metrics are the logged model's too. A `dataset` is an MLflow data set
    with its context. `files` and `model` have their files in a folder; a model has a name. A `version` is the served
    model's in the registry, under the name `register_as`, with tags. An `end` holds status, end_time in milliseconds,
    tags, and `process`, the tags of the process whose end it is, or none; `if_open` leaves the status of a run that is
    closed. `others` are the records that another process has left of this run.
    """

    kind: Kind
    run_id: str
    body: Mapping[str, Any] = field(default_factory=dict)
    files: Path | None = None  # a folder
    path: Path | None = None  # where it is kept; None: in memory alone
    tried: bool = False  # whether it may have arrived, its answer being lost

    def joins(self, other: "Record") -> bool:
        """Whether both can be sent in one call."""
        if not self.kind == other.kind == "batch":
            return False
        return all(self.body.get(key) == other.body.get(key) for key in ("once", "of_model")) and (
            self.run_id == other.run_id
        )


MOST = 200  # records in one call
FIGURE = 0  # the step of what is said of a whole run
LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT}  # of local artifact stores
PASSING = {401, 403, 408, 429}  # of HTTP's answers from 400 to 499: a password that has run out can be renewed


def is_permanent(error: Exception) -> bool:
    """Whether MLflow has answered, and will not answer otherwise when it is asked again."""
    if isinstance(error, MlflowException):
        answered = isinstance(error, RestException) or not mlflow.get_tracking_uri().startswith("http")
        status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
        return answered and 400 <= status < 500 and status not in PASSING
    return isinstance(error, OSError) and error.errno in LASTING


def coalesce(records: Sequence[Record]) -> list[Record]:
    """The first of the records, with those after it that can be sent in the same call."""
    found = [records[0]]
    for record in records[1:MOST]:
        if not record.joins(found[0]):
            break
        found.append(record)
    return found


def send(client: MlflowClient, records: Sequence[Record]) -> None:
    """Send records that go together; raises what MLflow's client raises."""
    if records[0].kind == "batch":
        _batch(client, records)
    else:
        _SENDERS[records[0].kind](client, records[0])


def _batch(client: MlflowClient, records: Sequence[Record]) -> None:
    run_id, first = records[0].run_id, records[0].body
    points: list[list[Any]] = [point for record in records for point in record.body.get("metrics", ())]
    if any(point[3] == FIGURE for point in points) or (points and any(record.tried for record in records)):
        points = _missing(client, run_id, points, once=first.get("once", False))
    model = find_logged_model(client, client.get_run(run_id)) if first.get("of_model") else None
    model_id = model.model_id if model else None
    metrics = [Metric(name, value, time, step, model_id=model_id, run_id=run_id) for name, value, time, step in points]
    tags = [RunTag(name, value) for name, value in _merged(records, "tags").items()]

    def log(params: Mapping[str, str]) -> None:
        client.log_batch(
            run_id, metrics, [Param(name, value) for name, value in params.items()], tags, synchronous=True
        )

    params = _merged(records, "params")
    try:
        log(params)
    except MlflowException:  # another driver logs the same: MLflow looks, then writes, and does not hold on between
        there = client.get_run(run_id).data.params
        missing = {name: value for name, value in params.items() if there.get(name) != value}
        if missing == params:
            raise
        log(missing)


def _merged(records: Sequence[Record], part: str) -> dict[str, str]:
    return {name: value for record in records for name, value in record.body.get(part, {}).items()}


def _missing(client: MlflowClient, run_id: str, points: list[list[Any]], *, once: bool) -> list[list[Any]]:
    """Those of the points that the run does not have, and of its figures those that say something new.

    A figure may come again from whoever goes on after a kill, which fell between its telling and what it stands for.
    """
    there = client.get_run(run_id).data.metrics
    known: set[tuple[object, ...]] = set()
    for name in {point[0] for point in points} & there.keys():
        for point in client.get_metric_history(run_id, name):
            known |= {(name, point.step), (name, point.step, point.timestamp)}

    def is_there(name: str, value: float, time: int, step: int) -> bool:
        if once:
            return (name, step) in known
        return (name, step, time) in known or (step == FIGURE and there.get(name) == value)

    return [point for point in points if not is_there(*point)]


def _dataset(client: MlflowClient, record: Record) -> None:
    said = dict(record.body)
    context = InputTag(MLFLOW_DATASET_CONTEXT, said.pop("context"))
    client.log_inputs(record.run_id, datasets=[DatasetInput(Dataset(**said), [context])])


def _files(client: MlflowClient, record: Record) -> None:
    client.log_artifacts(record.run_id, str(record.files))


def _model(client: MlflowClient, record: Record) -> None:
    """What `log_model` does, in steps that can be taken again."""
    assert record.files
    run, name = client.get_run(record.run_id), record.body["name"]
    model = find_logged_model(client, run, name)
    if model is None:
        model = client.create_logged_model(
            run.info.experiment_id, name=name, source_run_id=record.run_id, params=run.data.params
        )
    if model.status != LoggedModelStatus.READY:
        about = Model.load(str(record.files / "MLmodel"))
        about.run_id, about.artifact_path = record.run_id, model.artifact_location
        about.model_id = about.model_uuid = model.model_id
        about.save(str(record.files / "MLmodel.part"))
        os.replace(record.files / "MLmodel.part", record.files / "MLmodel")
        client.set_logged_model_tags(model.model_id, {Tag.FILE_DIGESTS: json.dumps(sha256_files(record.files))})
        client.log_model_artifacts(model.model_id, str(record.files))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in {output.model_id for output in outputs}:
        client.log_outputs(record.run_id, [LoggedModelOutput(model.model_id, step=0)])


def _end(client: MlflowClient, record: Record) -> None:
    said = record.body
    run = client.get_run(record.run_id)
    mine: Mapping[str, str] = said.get("process") or {}
    if any(run.data.tags.get(name, value) != value for name, value in mine.items()):
        return  # another process has gone on with the run since
    client.log_batch(record.run_id, tags=[RunTag(name, value) for name, value in said["tags"].items()])
    if not (said.get("if_open") and run.info.status != "RUNNING"):
        client.set_terminated(record.run_id, said["status"], end_time=said["end_time"])


def _version(client: MlflowClient, record: Record) -> None:
    register_version(TrackingClient(client), record.run_id, name=record.body["register_as"], tags=record.body["tags"])


_SENDERS: dict[str, Callable[[MlflowClient, Record], None]] = {
    "dataset": _dataset,
    "files": _files,
    "model": _model,
    "end": _end,
    "version": _version,
}
