"""One run in MLflow, and what is logged to it."""

import hashlib
import json
import math
import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import LoggedModelStatus, Run
from mlflow.types import Schema, TensorSpec

from pipeline.runtime.clock import now_milliseconds
from pipeline.runtime.errors import Deleted, TrackingError, Unavailable, UsageError
from pipeline.runtime.process import this_process
from pipeline.runtime.retry import retry
from pipeline.runtime.tables import to_csv
from pipeline.runtime.urls import mask_password
from pipeline.tracking import registry
from pipeline.tracking.client import TAG_CHARACTERS, TrackingClient
from pipeline.tracking.images import image_name, save_image
from pipeline.tracking.model_card import CLASS_SIZES
from pipeline.tracking.models import CALIBRATED, MODEL, SERVED
from pipeline.tracking.outbox import spool
from pipeline.tracking.outbox.delivery import describe_error
from pipeline.tracking.outbox.outbox import PATIENCE_SECONDS, PAUSES, Outbox
from pipeline.tracking.outbox.records import (
    SUMMARY_STEP,
    EndRun,
    FileWriter,
    LogBatch,
    LogDataset,
    LogFiles,
    LogInputModel,
    LogModel,
    LogTable,
    Point,
    RegisterCalibrated,
    RegisterVersion,
    WriteModelCard,
)
from pipeline.tracking.ownership import (
    is_generated_name,
    require_server,
)
from pipeline.tracking.tags import RunOutcome, Tag, run_outcome_tags

PARAM_CHARACTERS = 6000  # MLflow refuses longer values
# At the start of a run, for its first file: with a store that fails, and with one that is slow.
ARTIFACT_PATIENCE_SECONDS = 5.0
ARTIFACT_SECONDS = 30.0
END_SECONDS = 2.0  # for a server that does not answer


class TrackedRun:
    """What is logged to one run of MLflow; it goes through an outbox, which no outage of the server stops."""

    def __init__(self, run_id: str, outbox: Outbox, entity: Run | None = None) -> None:
        """Log to an open run.

        Args:
            run_id: The run.
            outbox: Sends what is logged; it may be another run's.
            entity: The run as MLflow had it when it was opened; None if that was not asked.
        """
        self.id = run_id
        self.outbox = outbox
        self.experiment_id: str = entity.info.experiment_id if entity else ""
        self.artifact_uri: str = entity.info.artifact_uri if entity else ""
        self.model_uri: str | None = None
        self.notices: list[str] = []  # lines on other runs, for the terminal
        self.is_superseded = False  # whether another process has claimed the run since
        self.is_claimed = False  # whether this process has
        # runs below it that end with it: the one that `mlflow run` opened, and that of the fold which is trained
        self.project_run_id: str | None = None
        self.fold_run_id: str | None = None
        self.name: str = entity.info.run_name if entity else ""
        self._entity = entity
        self._has_model = False
        self._has_images = False
        self._has_waited = False
        self._registration: RegisterVersion | None = None
        self._ends: list[EndRun] = []
        self._logged: dict[tuple[str, int], float] = {}  # values by metric and step

    def load_logged_state(self) -> str:
        """Read what an interrupted run has logged, since MLflow would keep a second point beside the first.

        Returns:
            The run's name.

        Raises:
            UsageError: MLflow does not answer, not after a while either.
        """
        # what the interrupted process has left may still be on its way
        self.outbox.flush()
        with require_server():
            return retry(
                self._load_logged_state,
                is_transient=lambda error: isinstance(error, Unavailable),
                seconds=PATIENCE_SECONDS,
                pauses=PAUSES,
            )

    def _load_logged_state(self) -> str:
        client = TrackingClient()
        entity = client.get_run(self.id)
        for name in entity.data.metrics:
            # system metrics continue after the last step
            if not name.startswith("system/"):
                points = client.get_metric_history(self.id, name)
                self._logged |= {(name, point.step): point.value for point in points}
        for output in entity.outputs.model_outputs if entity.outputs else ():
            model = client.get_logged_model(output.model_id)
            if model.status == LoggedModelStatus.READY and model.name == MODEL:
                self._has_model, self.model_uri = True, model.model_uri
        return entity.info.run_name

    def set_name(self, name: str) -> str:
        """Name the run, unless a person has named it; return the name that it has then.

        A name that another run of the experiment has gets a number: `digits depth=6 #2`.
        """
        if self.name and not is_generated_name(self.name):
            return self.name
        # a run may be called like another one while the server does not answer
        with suppress(TrackingError):
            name = TrackingClient().unique_run_name(self.experiment_id, name)
        self.set_tags({Tag.RUN_NAME: name})
        self.name = name
        return name

    def set_description(self, text: str) -> None:
        """Set the description at the top of MLflow's page of the run, in Markdown; names in it need `markdown_text`."""
        self.set_tags({Tag.DESCRIPTION: text})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; long values are cut."""
        self.outbox.put(LogBatch(self.id, tags=_cut(tags, TAG_CHARACTERS)))

    def log_params(self, params: Mapping[str, str]) -> None:
        """Log parameters, but for those that the run had when it was opened, as `mlflow run` logs what was typed."""
        logged = self._entity.data.params if self._entity else {}
        new = {name: value for name, value in params.items() if name not in logged}
        self.outbox.put(LogBatch(self.id, params=_cut(new, PARAM_CHARACTERS)))

    def log_dataset(
        self,
        *,
        name: str,
        source: str,
        digest: str,
        context: str,
        shape: Sequence[int],
        class_sizes: Mapping[str, int],
    ) -> None:
        """Log a data set as an input of the run.

        Args:
            name: Of the data set.
            source: An absolute path or, for data that come with a package, the package.
            digest: Of the content, at most 36 characters.
            context: train, validation or test.
            shape: Of one image, (height, width, channels).
            class_sizes: Number of images by class.
        """
        # MLflow knows two names for a local path and warns of that
        with warnings.catch_warnings(action="ignore"):
            origin = resolve_dataset_source(source) if os.path.isabs(source) else CodeDatasetSource({"source": source})
        images = TensorSpec(np.dtype(np.uint8), (-1, *shape), "image")
        dataset = MetaDataset(origin, name=name, digest=digest, schema=Schema([images]))  # type: ignore[abstract]
        profile = json.dumps({"images": sum(class_sizes.values()), CLASS_SIZES: dict(class_sizes)})
        entity = dataset._to_mlflow_entity().to_dictionary() | {"profile": profile}
        self.outbox.put(LogDataset(self.id, entity, context))

    def log_input_model(self, model_id: str) -> None:
        """Log a model that another run has trained as an input of this one."""
        self.outbox.put(LogInputModel(self.id, model_id))

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> set[str]:
        """Log the metrics of an epoch, counted from 1, in one call.

        Returns:
            Names of the metrics that the run had at this epoch with another value, which stays.

        Raises:
            TrackingError: MLflow has refused an earlier record, because the run has been deleted, for example.
        """
        self.raise_rejection()
        others = {name for name, value in metrics.items() if self._logged.get((name, epoch), value) != value}
        self._log_once(metrics, epoch)
        return others

    def log_results(self, metrics: Mapping[str, float]) -> None:
        """Log metrics of the whole run, which are also those of its model, if it has one."""
        if self._has_model:
            self.log_model_metrics(metrics)
        else:
            self._log_once(metrics, SUMMARY_STEP)

    def log_model_metrics(self, metrics: Mapping[str, float], *, step: int = SUMMARY_STEP) -> None:
        """Log metrics of the run and of the model that it has logged."""
        self._log_once(metrics, step, of_model=True)

    def log_system_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log what the machine does."""
        self._log_once(metrics, step)

    def _log_once(self, metrics: Mapping[str, float], step: int, *, of_model: bool = False) -> None:
        """Log the metrics that have no value at this step."""
        new = {name: value for name, value in metrics.items() if (name, step) not in self._logged}
        self._logged |= {(name, step): value for name, value in new.items()}
        if new:
            points = metric_points(new, step)
            self.outbox.put(LogBatch(self.id, metrics=points, one_point_a_step=True, of_model=of_model))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = SUMMARY_STEP) -> None:
        """Log metrics that may change: a step keeps each value."""
        self.outbox.put(LogBatch(self.id, metrics=metric_points(metrics, step)))

    def log_figure(self, path: str, figure: spool.Figure, *, key: str | None = None) -> None:
        """Log a picture as PNG, for the screen, and as SVG beside it, for print.

        Args:
            path: Where it lies among the run's artifacts; it ends with .png.
            figure: The picture.
            key: Also log it as an image under this key, see `log_image`.
        """
        copies = [path, str(PurePosixPath(path).with_suffix(".svg"))]
        if key:
            self.log_image(key, figure, copies=copies)
        else:
            self.outbox.put(LogFiles(self.id, write=spool.save_figure(copies, figure)))

    def log_image(self, key: str, figure: spool.Figure, *, step: int = 0, copies: Sequence[str] = ()) -> None:
        """Log a picture for the image grid of MLflow's chart view, which compares runs by the key.

        Args:
            key: What it shows, the same in every run.
            figure: The picture.
            step: Its place on the grid's slider. A second picture at the same key and step replaces the first.
            copies: Paths of copies among the run's artifacts, in the formats that they end with.
        """
        write = save_image(image_name(self.id, key, step), figure, copies=copies)
        self.outbox.put(LogFiles(self.id, write=write))
        if not self._has_images:
            self.set_tags({Tag.LOGGED_IMAGES: "True"})
            self._has_images = True

    def log_text(self, path: str, text: str) -> None:
        """Log a text file."""
        self.outbox.put(LogFiles(self.id, write=spool.write_text(path, text)))

    def log_file(self, path: str, source: Path) -> None:
        """Log a copy of a file as it is now."""
        self.outbox.put(LogFiles(self.id, write=spool.copy_file(path, source)))

    def log_table(self, path: str, table: pd.DataFrame, *, view: pd.DataFrame | None = None) -> None:
        """Log a table as CSV, without its index.

        Args:
            path: Where it lies among the run's artifacts; it must end with .csv.
            table: The table.
            view: What MLflow's evaluation view, which compares runs, is to show of it, logged beside it as JSON.
        """
        self.log_text(path, to_csv(table))
        if view is not None:
            text = view.to_json(orient="split", index=False)
            write = spool.write_text(f"{path.removesuffix('.csv')}.json", text)
            self.outbox.put(LogTable(self.id, write=write))

    def log_model(self, save: FileWriter) -> None:
        """Log the model that `save` writes into a folder, unless the run has logged it before an interruption."""
        if not self._has_model:
            self.outbox.put(LogModel(self.id, MODEL, write=save))
            self._has_model = True

    def register_model(self, name: str, save: FileWriter, *, classes: Sequence[str], tags: Mapping[str, str]) -> None:
        """Log the model as it is served, and register it once the run has finished.

        Args:
            name: Of the registered model; the run's becomes a version of it.
            save: Writes the model into a folder.
            classes: Names in the order of the model's probabilities.
            tags: Of the version.
        """
        self.outbox.put(LogModel(self.id, SERVED, write=save))
        digest = hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()
        self._registration = RegisterVersion(self.id, name, {**tags, Tag.CLASSES_DIGEST: digest})

    def log_calibrated_model(self, save: FileWriter, *, temperature: str, version: tuple[str, str] | None) -> None:
        """Log the served model with calibrated probabilities, unless the run has one, and register it.

        Args:
            save: Writes the model into a folder.
            temperature: It, and what it was fitted on, in words.
            version: Name and number of the registered version that it calibrates; None registers nothing.
        """
        self.outbox.put(LogModel(self.id, CALIBRATED, tags={Tag.TEMPERATURE: temperature}, write=save))
        if version:
            self.outbox.put(RegisterCalibrated(self.id, *version, temperature))

    def check_artifacts_writable(self) -> None:
        """Wait until the first file that was logged is stored: what it shows is better known before the training.

        A store that takes long is not waited for, nor is a tracking server that has gone away meanwhile.

        Raises:
            UsageError: The artifact store refuses it, or fails on it while the tracking server answers.
        """
        pending = self.check_artifacts_accepted(ARTIFACT_PATIENCE_SECONDS, at_most=ARTIFACT_SECONDS)
        if pending and (reason := self.outbox.failure()) and TrackingClient().is_available():
            raise self._artifacts_error(reason)

    def check_artifacts_accepted(self, unavailable_seconds: float = 0.0, *, at_most: float = math.inf) -> int:
        """Wait until what was logged is stored, or a store has not answered for so long; return how many records wait.

        Raises:
            Deleted: The run has been deleted meanwhile.
            UsageError: The artifact store has refused something.
        """
        pending = self.outbox.flush(unavailable_seconds=unavailable_seconds, at_most=at_most)
        try:
            self.raise_rejection()
        except Deleted:
            raise
        except TrackingError as error:
            raise self._artifacts_error(str(error)) from None
        return pending

    def _artifacts_error(self, reason: str) -> UsageError:
        return UsageError(
            f"the artifacts of a run must be writable: {mask_password(self.artifact_uri)}: {reason}; give this user "
            "the right to write there, or use an experiment with another artifact location"
        )

    def describe_registration(self) -> str | None:
        """Return what became of the registration after the run's end; None if there was none to be.

        `model_uri` is the version's from then on.
        """
        if self._registration is None:
            return None
        if self.outbox.pending():
            return "not registered yet: it will be when the pending records have been sent"
        try:
            self.outbox.raise_rejection()
            tags = TrackingClient().get_run(self.id).data.tags
        except Exception as error:  # noqa: BLE001 - each kind of store raises its own
            return f"not registered: {describe_error(error)}"
        self.model_uri = tags.get(Tag.REGISTERED, self.model_uri)
        return registry.describe(tags)

    def wait_until_logged(self, unavailable_seconds: float) -> None:
        """Wait until MLflow has what was logged, or has not answered for so long; for the latter once in a run.

        Raises:
            TrackingError: MLflow has refused something.
        """
        pending = self.outbox.flush(unavailable_seconds=0.0 if self._has_waited else unavailable_seconds)
        self._has_waited = True
        self.raise_rejection()
        if self._has_model and not pending and self.model_uri is None:
            # it is only shown
            with suppress(Exception):
                client = TrackingClient()
                model = client.find_logged_model(client.get_run(self.id), MODEL)
                self.model_uri = model.model_uri if model else None

    def raise_rejection(self) -> None:
        """Raise, once, the error with which MLflow refused a record.

        Raises:
            Deleted: The run has been deleted meanwhile; the message says how to restore it.
            TrackingError: Any other refusal.
        """
        try:
            self.outbox.raise_rejection()
        except TrackingError as rejection:
            try:
                TrackingClient().get_active_run(self.id)
            except Deleted:
                raise
            except Exception:  # noqa: BLE001 - it was only to say more
                raise rejection from None
            raise

    def end(self, outcome: RunOutcome, reason: str) -> None:
        """End the run, and those below it that end with it, unless another process has claimed it."""
        if self.is_superseded:
            return
        process = this_process().tags() if self.is_claimed else None
        run_ids = filter(None, (self.fold_run_id, self.id, self.project_run_id))
        self._ends = [end_record(run_id, outcome, reason, process=process) for run_id in run_ids]
        for end in self._ends:
            self.outbox.put(end)
        if outcome is not RunOutcome.FINISHED:
            return
        if self._registration:
            self.outbox.put(self._registration)
        if self._has_model:
            self.write_model_card()

    def send_end(self) -> None:
        """Send the run's end past the records before it, as an outage may be the artifact store's alone."""

        def send() -> None:
            # they are in the outbox, too
            with suppress(Exception):
                client = TrackingClient()
                for end in self._ends:
                    end.send(client)

        sender = threading.Thread(target=send, name="end", daemon=True)
        sender.start()
        sender.join(END_SECONDS)

    def write_model_card(self) -> None:
        """Write the card of the run's model from what has been logged, and into the registry if it is registered."""
        self.outbox.put(WriteModelCard(self.id))


def metric_points(metrics: Mapping[str, float], step: int) -> tuple[Point, ...]:
    """Return metrics as points of this moment."""
    now = now_milliseconds()
    return tuple(Point(name, float(value), now, step) for name, value in metrics.items())


def end_record(run_id: str, outcome: RunOutcome, reason: str, *, process: Mapping[str, str] | None = None) -> EndRun:
    """Return the record of a run's end at this moment."""
    tags = run_outcome_tags(outcome, mask_password(reason)[:TAG_CHARACTERS])
    return EndRun(run_id, outcome.status, now_milliseconds(), tags, process)


def _cut(values: Mapping[str, str], most: int) -> dict[str, str]:
    return {name: value[:most] for name, value in values.items()}
