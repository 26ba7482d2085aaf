"""The command `predict`: classify image files with a logged model."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.config.commands import PredictCommand
from pipeline.data.decode import describe_12_bits
from pipeline.data.image_files import ImageFiles
from pipeline.data.read_images import read_batch
from pipeline.evaluation.figures.training import confusion_matrix
from pipeline.runtime.console import Console
from pipeline.runtime.errors import UsageError
from pipeline.runtime.tables import csv_row
from pipeline.runtime.text import count, format_share, join_names
from pipeline.tracking.client import NotFound, TrackingClient
from pipeline.tracking.lifecycle import start_run
from pipeline.tracking.models import LoggedModel, load_model, resolve_model_uri
from pipeline.tracking.ownership import require_server
from pipeline.tracking.project_run import ProjectRun, close_if_unused
from pipeline.tracking.tags import Role, Tag, code_version_tags

TABLE = "predictions.csv"
EXPERIMENT = "predictions"  # of those whose model's run has been deleted
BATCH_SIZE = 64  # images in memory at once
TOP_CLASSES = 3  # classes in a row of the table
COLUMNS = [
    *("file", "class", "probability"),
    *(f"{name}_{rank}" for rank in range(2, TOP_CLASSES + 1) for name in ("class", "probability")),
    *("truth", "error"),
]


class Prediction(NamedTuple):
    """The most probable classes of an image file, or why it cannot be read."""

    file: str
    top: list[tuple[int, float]]  # class position and probability, the most probable first
    error: str  # empty if the file could be read
    highest_of_16_bits: int | None  # in the batch of this file; see `Batch`


class PredictionSummary:
    """Counts over the predictions of one command, and the confusion matrix of those whose true class is known."""

    def __init__(self, classes: int) -> None:
        self.predicted = 0
        self.unreadable = 0
        self.first_error = ""
        self.highest_of_16_bits: int | None = None
        self.confusion = np.zeros((classes, classes), np.int64)  # rows true classes, columns predicted ones

    def add(self, prediction: Prediction, label: int | None) -> None:
        """Count a prediction; `label` is the position of the true class, None if that is not known."""
        if prediction.error:
            self.unreadable += 1
            self.first_error = self.first_error or prediction.error
            return
        self.predicted += 1
        if prediction.highest_of_16_bits is not None:
            self.highest_of_16_bits = max(prediction.highest_of_16_bits, self.highest_of_16_bits or 0)
        if label is not None:
            self.confusion[label, prediction.top[0][0]] += 1

    @property
    def labelled(self) -> int:
        """Return the number of predictions whose true class is known."""
        return int(self.confusion.sum())

    @property
    def metrics(self) -> dict[str, float]:
        """Return the metrics of the prediction's run: images, unreadable, and accuracy if any true class is known."""
        metrics: dict[str, float] = {"images": self.predicted, "unreadable": self.unreadable}
        if self.labelled:
            metrics["accuracy"] = float(np.trace(self.confusion) / self.labelled)
        return metrics

    def __str__(self) -> str:
        text = f"{count(self.predicted, 'image')} predicted"
        if self.labelled:
            some = f" of {self.labelled:,} of them" if self.labelled < self.predicted else ""
            text += f", accuracy {format_share(self.metrics['accuracy'])}{some} by the names of their folders"
        if self.unreadable:
            text += f"; {count(self.unreadable, 'file')} could not be read: their rows have the reason"
        return text


def run_prediction(command: PredictCommand, files: ImageFiles, console: Console) -> None:
    """Classify image files, write a table of the predictions, and log it to a run.

    A file that is no image has a row with the reason; the others are predicted all the same. The run is the one that
    `mlflow run` opened, or a new one below the run that trained the model.

    Raises:
        UsageError: The model does not exist or its files are not those that were logged, the folder cannot be written,
            no file is an image, or the artifact store refuses the table, which is in the folder then.
    """
    with close_if_unused(ProjectRun.find()):
        with require_server():
            client = TrackingClient()
            uri = resolve_model_uri(client, command.model)
        model = load_model(client, uri)
        with require_server():
            parent, experiment_id = _place(client, model)
        with start_run(
            role=Role.PREDICT,
            parent=parent,
            experiment_id=experiment_id,
            tags={Tag.PREDICT_MODEL: uri, Tag.PREDICT_IMAGES: str(command.images)},
        ) as run:
            run.set_name(f"predictions of {command.images.name}"[:200])
            run.set_tags(
                code_version_tags() | {Tag.PREDICT_MODEL_ID: model.model_id, Tag.PREDICT_TRAINED_BY: model.run_id}
            )
            for notice in run.notices:
                console.print(notice)

            table = create_table(command.folder.absolute() / run.id)
            summary = write_predictions(table, model, files)
            if not summary.predicted:
                files_given = count(summary.unreadable, "file")
                raise UsageError(f"at least one file must be an image, got {files_given}: {summary.first_error}")

            console.print(str(summary), f"table    {table}")
            run.log_file(TABLE, table)
            if summary.labelled:
                subject = f"{command.images.name}, model of run {model.run_id[:8]}"
                figure = confusion_matrix(summary.confusion, classes=model.classes, subject=subject)
                run.log_figure("plots/confusion_matrix.png", figure)
            run.log_results(summary.metrics)
            run.set_description(str(summary))
            # in an outage the outbox keeps the files; a refusal is final
            run.check_artifacts_accepted()

    if problem := describe_12_bits(summary.highest_of_16_bits):
        console.warn(problem)
    if folders := files.folders_without_class(model.classes):
        console.print(f"no accuracy: these folders do not have the names of classes: {join_names(folders)}")
    if pending := run.outbox.pending():
        console.print(pending)
    console.print(f"model    {model.model_id} of run {model.run_id}", f"run      {run.id}")


def _place(client: TrackingClient, model: LoggedModel) -> tuple[str | None, str]:
    """Return the run to put a prediction below, and the experiment of a new run.

    A run that trained a model may have been deleted since: the prediction is then in an experiment of its own kind, as
    it is no training.
    """
    try:
        trained_by = client.get_active_run(model.run_id).info
    except NotFound:
        experiment = client.find_experiment(EXPERIMENT)
        return None, experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    return trained_by.run_id, trained_by.experiment_id


def write_predictions(path: Path, model: LoggedModel, files: ImageFiles) -> PredictionSummary:
    """Write a table of the predictions as CSV, a row a file, as they come."""
    summary = PredictionSummary(len(model.classes))
    labels = files.labels_from_folders(model.classes)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for prediction, label in zip(predict_files(model, files.files), labels, strict=True):
            summary.add(prediction, label)
            cells = [cell for position, share in prediction.top for cell in (model.classes[position], f"{share:.6f}")]
            # a file that is no image has none, a model of two classes fewer
            cells += [""] * (2 * TOP_CLASSES - len(cells))
            truth = "" if label is None else model.classes[label]
            writer.writerow(csv_row([files.display_name(prediction.file), *cells, truth, prediction.error]))
    return summary


def predict_files(model: LoggedModel, files: Sequence[str]) -> Iterator[Prediction]:
    """Yield the prediction of each file, in order; images are resized to the model's as in training."""
    for start in range(0, len(files), BATCH_SIZE):
        batch_files = files[start : start + BATCH_SIZE]
        batch = read_batch(batch_files, model.image_shape, model.resize)
        errors = dict(batch.errors)
        probabilities = model.predict_proba(batch.images)  # (b, classes)
        for file, row in zip(batch_files, probabilities, strict=True):
            if file in errors:
                yield Prediction(file, [], errors[file], None)
            else:
                yield Prediction(file, _top_classes(row), "", batch.highest_of_16_bits)


def _top_classes(probabilities: npt.NDArray[np.float32]) -> list[tuple[int, float]]:
    order = np.argsort(-probabilities, kind="stable")[:TOP_CLASSES]
    return [(int(position), float(probabilities[position])) for position in order]


def create_table(folder: Path) -> Path:
    """Create a folder with an empty table in it; return the table's path.

    Raises:
        UsageError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TABLE).touch()
    except OSError as error:
        raise UsageError(f"folder must be writable, got {folder}: {error.strerror}; name another") from None
    return folder / TABLE
