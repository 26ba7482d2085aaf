"""Records: what is to be logged to a run, each kind with the call that sends it to MLflow.

A record reaches MLflow once, even where an earlier attempt has arrived and its answer was lost.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
)
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.runtime.errors import TrackingError
from pipeline.runtime.files import sha256_files
from pipeline.runtime.text import join_names, shown
from pipeline.tracking.client import TAG_CHARACTERS, TrackingClient
from pipeline.tracking.errors import mlflow_errors
from pipeline.tracking.model_card import write_model_card
from pipeline.tracking.models import MODEL
from pipeline.tracking.registry import register_calibrated, register_version
from pipeline.tracking.tags import Tag

FileWriter = Callable[[Path], None]  # writes files into a folder

MAX_RECORDS = 200  # in one call
SUMMARY_STEP = 0  # of metrics that describe a whole run


class Point(NamedTuple):
    """A value of a metric."""

    name: str
    value: float
    timestamp: int  # milliseconds since the epoch
    step: int


@dataclass(frozen=True)
class Record(ABC):
    """One thing to be logged to a run.

    As JSON it is the name of its class, `kind`, and those of its fields that are kept on disk.
    """

    # so that what was not written by this version is recognized when it is read
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    run_id: str

    def send(self, client: TrackingClient) -> None:
        """Log the record.

        Raises:
            TrackingError: MLflow refused it, or did not answer.
            OSError: A local store, or a library below a remote one, failed.
        """
        with mlflow_errors():
            self._send(client)

    @abstractmethod
    def _send(self, client: TrackingClient) -> None: ...

    def as_retried(self) -> "Record":
        """Return the record as one that an earlier attempt may have logged, its answer being lost."""
        return self

    def merge(self, other: "Record") -> "Record | None":
        """Return one record that stands for this one and the next one, or None if they need a call each."""
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is kept on disk."""
        kept = {one.name: getattr(self, one.name) for one in fields(self) if one.metadata.get("is_kept", True)}
        return {"kind": type(self).__name__} | kept


@dataclass(frozen=True)
class LogBatch(Record):
    """Log metrics, parameters and tags in one call."""

    metrics: tuple[Point, ...] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    one_point_a_step: bool = False  # a second point of a metric at a step is left out
    of_model: bool = False  # the metrics are the logged model's too
    retried: bool = field(default=False, metadata={"is_kept": False})

    def as_retried(self) -> "LogBatch":
        """Return the batch with the request to look for its points first."""
        return replace(self, retried=True)

    def merge(self, other: Record) -> "LogBatch | None":
        """Return both batches as one if they are of the same run and kind of metrics."""
        if not isinstance(other, LogBatch) or self._call() != other._call():
            return None
        return replace(
            self,
            metrics=(*self.metrics, *other.metrics),
            params={**self.params, **other.params},
            tags={**self.tags, **other.tags},
            retried=self.retried or other.retried,
        )

    def _call(self) -> tuple[object, ...]:
        return (self.run_id, self.one_point_a_step, self.of_model)

    def _send(self, client: TrackingClient) -> None:
        points: Sequence[Point] = self.metrics
        if any(point.step == SUMMARY_STEP for point in points) or (points and self.retried):
            points = self._missing_points(client)
        model = client.find_logged_model(client.get_run(self.run_id), MODEL) if self.of_model else None
        model_id = model.model_id if model else None
        metrics = [
            Metric(point.name, point.value, point.timestamp, point.step, model_id=model_id, run_id=self.run_id)
            for point in points
        ]
        try:
            client.log_batch(self.run_id, metrics=metrics, params=self.params, tags=self.tags)
        except TrackingError:
            # another driver logs the same parameters: MLflow looks, then writes, and takes no lock in between
            logged = client.get_run(self.run_id).data.params
            missing = {name: value for name, value in self.params.items() if logged.get(name) != value}
            if missing == self.params:
                raise
            client.log_batch(self.run_id, metrics=metrics, params=missing, tags=self.tags)

    def _missing_points(self, client: TrackingClient) -> list[Point]:
        """Return the points that the run does not have, and of its summary metrics those with a new value.

        A summary metric may come again from a process that resumes the run: a kill fell between its logging and what
        it stands for.
        """
        latest = client.get_run(self.run_id).data.metrics
        logged: set[tuple[object, ...]] = set()
        for name in {point.name for point in self.metrics} & latest.keys():
            for metric in client.get_metric_history(self.run_id, name):
                logged |= {(name, metric.step), (name, metric.step, metric.timestamp)}

        def is_logged(point: Point) -> bool:
            if self.one_point_a_step:
                return (point.name, point.step) in logged
            is_same_summary = point.step == SUMMARY_STEP and latest.get(point.name) == point.value
            return (point.name, point.step, point.timestamp) in logged or is_same_summary

        return [point for point in self.metrics if not is_logged(point)]


@dataclass(frozen=True)
class LogDataset(Record):
    """Log a data set as an input of a run."""

    dataset: Mapping[str, str]  # MLflow's entity, as a dictionary
    context: str  # train, validation or test

    def _send(self, client: TrackingClient) -> None:
        context = InputTag(MLFLOW_DATASET_CONTEXT, self.context)
        client.mlflow.log_inputs(self.run_id, datasets=[DatasetInput(Dataset(**self.dataset), [context])])


@dataclass(frozen=True)
class LogInputModel(Record):
    """Log a model as an input of a run."""

    model_id: str

    def _send(self, client: TrackingClient) -> None:
        client.mlflow.log_inputs(self.run_id, models=[LoggedModelInput(self.model_id)])


@dataclass(frozen=True)
class FileRecord(Record):
    """Base of the records that have files: `write` makes them, and then they lie in `folder`."""

    files: tuple[str, ...] = field(default=(), kw_only=True)  # their paths below the folder
    write: FileWriter | None = field(default=None, kw_only=True, compare=False, metadata={"is_kept": False})
    folder: Path | None = field(default=None, kw_only=True, metadata={"is_kept": False})

    def with_files(self, folder: Path) -> Self:
        """Return the record with all files of a folder as its own."""
        files = tuple(path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
        return replace(self, write=None, folder=folder, files=files)

    def in_folder(self, folder: Path) -> Self:
        """Return the record with its files in a folder."""
        return replace(self, folder=folder)

    def complete_folder(self) -> Path:
        """Return the folder of the record's files.

        Raises:
            FileNotFoundError: Some of them are gone.
        """
        assert self.folder
        missing = [name for name in self.files if not (self.folder / name).is_file()]
        if missing or not self.files:
            raise FileNotFoundError(f"its files are gone: {join_names(missing) or self.folder.name}")
        return self.folder


@dataclass(frozen=True)
class LogFiles(FileRecord):
    """Upload files among a run's artifacts."""

    def _send(self, client: TrackingClient) -> None:
        client.upload_artifacts(self.run_id, self.complete_folder())


@dataclass(frozen=True)
class LogTable(LogFiles):
    """Upload a table, and name it in the tag by which MLflow's evaluation view finds it."""

    def _send(self, client: TrackingClient) -> None:
        """Do what MLflow's `log_table` does, in steps that can be repeated; that one would append the rows again."""
        super()._send(client)
        try:
            listed = list(json.loads(client.get_run(self.run_id).data.tags.get(Tag.LOGGED_ARTIFACTS, "[]")))
        except (TypeError, ValueError):
            # another program's, which MLflow cannot read either
            listed = []
        new = [table for name in self.files if (table := {"path": name, "type": "table"}) not in listed]
        text = json.dumps([*listed, *new])
        # a run that has been evaluated on very many data sets shows its first ones
        if new and len(text) <= TAG_CHARACTERS:
            client.log_batch(self.run_id, tags={Tag.LOGGED_ARTIFACTS: text})


@dataclass(frozen=True)
class LogModel(FileRecord):
    """Log a model, which has MLflow's file MLmodel among its files."""

    name: str
    tags: Mapping[str, str] = field(default_factory=dict)  # of the logged model

    def _send(self, client: TrackingClient) -> None:
        """Do what MLflow's `log_model` does, in steps that can be repeated."""
        folder = self.complete_folder()
        run = client.get_run(self.run_id)
        model = client.find_logged_model(run, self.name)
        if model is None:
            model = client.mlflow.create_logged_model(
                run.info.experiment_id, name=self.name, source_run_id=self.run_id, params=run.data.params
            )
        if model.status != LoggedModelStatus.READY:
            about = Model.load(str(folder / "MLmodel"))
            about.run_id, about.artifact_path = self.run_id, model.artifact_location
            about.model_id = about.model_uuid = model.model_id
            about.save(str(folder / "MLmodel.part"))
            os.replace(folder / "MLmodel.part", folder / "MLmodel")
            digests = json.dumps(sha256_files(folder))
            client.mlflow.set_logged_model_tags(model.model_id, {**self.tags, Tag.FILE_DIGESTS: digests})
            client.mlflow.log_model_artifacts(model.model_id, str(folder))
            client.mlflow.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        outputs = run.outputs.model_outputs if run.outputs else []
        if model.model_id not in {output.model_id for output in outputs}:
            client.mlflow.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])


@dataclass(frozen=True)
class EndRun(Record):
    """End a run, unless another process has claimed it since."""

    status: str
    end_time: int  # milliseconds since the epoch
    tags: Mapping[str, str]
    process: Mapping[str, str] | None = None  # tags of the process that ends the run; None: whoever owns it
    keep_status: bool = False  # leave the status of a run that has ended already

    def _send(self, client: TrackingClient) -> None:
        run = client.get_run(self.run_id)
        if any(run.data.tags.get(name, value) != value for name, value in (self.process or {}).items()):
            return
        client.log_batch(self.run_id, tags=self.tags)
        if not (self.keep_status and run.info.status != "RUNNING"):
            client.terminate_run(self.run_id, self.status, end_time=self.end_time)


@dataclass(frozen=True)
class RegisterVersion(Record):
    """Make the served model of a run a version in the registry."""

    name: str  # of the registered model
    tags: Mapping[str, str]  # of the version

    def _send(self, client: TrackingClient) -> None:
        register_version(client, self.run_id, name=self.name, tags=self.tags)


@dataclass(frozen=True)
class RegisterCalibrated(Record):
    """Make the calibrated model of a run a version in the registry, beside the one whose model it calibrates."""

    name: str  # of the registered model
    version: str  # the one that it calibrates
    temperature: str

    def _send(self, client: TrackingClient) -> None:
        register_calibrated(client, self.run_id, name=self.name, version=self.version, temperature=self.temperature)


@dataclass(frozen=True)
class WriteModelCard(Record):
    """Write the card of a run's model from what has been logged so far."""

    def _send(self, client: TrackingClient) -> None:
        write_model_card(client, self.run_id)


@dataclass(frozen=True)
class ForwardSpool(Record):
    """Send the records of this run that another process has left in its own spool."""

    def _send(self, client: TrackingClient) -> None:
        # imported here, as delivery sends the records of this module
        from pipeline.tracking.outbox.delivery import forward_spool

        forward_spool(client, self.run_id)


KINDS: dict[str, type[Record]] = {
    kind.__name__: kind
    for kind in (
        *(LogBatch, LogDataset, LogInputModel, LogFiles, LogTable, LogModel),
        *(EndRun, RegisterVersion, RegisterCalibrated, WriteModelCard, ForwardSpool),
    )
}


def from_json(kept: Any) -> Record:
    """Return the record that `Record.to_json` gave.

    Raises:
        ValueError: It is none of this version.
    """
    if not isinstance(kept, dict) or not isinstance(kept.get("kind"), str):
        raise ValueError("it is no record")
    values = dict(kept)
    kind = KINDS.get(values.pop("kind"))
    if kind is None:
        raise ValueError(f"records of the kind {shown(kept['kind'])} are unknown to this version")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"it is no {kind.__name__} of this version: {place}: {first['msg']}") from None


def coalesce(records: Sequence[Record], *, at_most: int = MAX_RECORDS) -> tuple[Record, int]:
    """Return one record that stands for the first of `records`, at most so many, and for how many it stands."""
    merged, count = records[0], 1
    for record in records[1:at_most]:
        both = merged.merge(record)
        if both is None:
            break
        merged, count = both, count + 1
    return merged, count
