"""The classes of images in files, by a model that a run has logged: `python -m pipeline predict models:/NAME@champion`.

MLflow and TensorFlow take seconds to import, so they come after the command line has been accepted.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

from pipeline.config.commands import PredictCommand
from pipeline.data.image_files import ImageFiles
from pipeline.data.read_images import read_batch
from pipeline.evaluation.figures import training
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import count, join_names
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.models import LoggedModel, load_model
from pipeline.tracking.project_run import ProjectRun, close_if_unused
from pipeline.tracking.run import TrackedRun, start_run
from pipeline.tracking.tags import Role, Tag, code_version_tags

BATCH = 64  # images in memory at a time
TOP = 3  # classes that are told of each


class Prediction(NamedTuple):
    """What came of a file."""

    file: str
    best: list[tuple[int, float]]  # the most probable classes, the first first: position and probability
    fault: str  # why it cannot be read, or nothing


def predict_files(model: LoggedModel, files: Sequence[str]) -> Iterator[Prediction]:
    """An answer for each file, in order; each image is stretched to the model's size, as in training."""
    for start in range(0, len(files), BATCH):
        some = files[start : start + BATCH]
        batch = read_batch(some, model.image_shape, True)
        faults = dict(batch.errors)
        probabilities = model.predict_proba(batch.images)  # (b, classes)
        for file, row in zip(some, probabilities, strict=True):
            yield Prediction(file, [], faults[file]) if file in faults else Prediction(file, _best(row), "")


def _best(row: npt.NDArray[np.float32]) -> list[tuple[int, float]]:
    return [(int(place), float(row[place])) for place in np.argsort(-row, kind="stable")[:TOP]]


TABLE = "predictions.csv"


class PredictionSummary:
    """What a table's rows come to."""

    def __init__(self, classes: int) -> None:
        self.read = self.unread = 0
        self.why = ""  # the first file that could not be read
        self.counts = np.zeros((classes, classes), np.int64)  # row the truth, column the prediction

    def add(self, answer: Prediction, truth: int | None) -> None:
        self.read += not answer.fault
        self.unread += bool(answer.fault)
        self.why = self.why or answer.fault
        if truth is not None and not answer.fault:
            self.counts[truth, answer.best[0][0]] += 1

    @property
    def told(self) -> int:
        """How many images have a truth."""
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """Share of these whose most probable class is the truth."""
        return float(np.trace(self.counts) / self.told)


def run_prediction(asked: PredictCommand, found: ImageFiles) -> list[str]:
    """Predict; returns lines for the terminal.

    A file that is no image has a row that says why; the others are predicted all the same.

    Raises:
        UsageError: the model cannot be had as it was logged, the folder cannot be written, or no file is an image.
    """
    with close_if_unused(ProjectRun.find()):
        model = load_model(TrackingClient(), asked.model)
        with _open_own_run(asked, model) as run:
            return [
                *run.notices,
                *_log_prediction(run, asked, model, found),
            ]


def _log_prediction(run: TrackedRun, asked: PredictCommand, model: LoggedModel, found: ImageFiles) -> list[str]:
    """Write the table, log it and what it comes to; returns lines for the terminal."""
    table = _made(asked.folder.absolute() / run.id / TABLE)
    with open(table, "w", encoding="utf-8", newline="") as file:
        tally = _written(file, predict_files(model, found.files), model, found)
    if not tally.read:
        raise UsageError(f"at least one file must be an image, got {count(tally.unread, 'file')}: {tally.why}")
    run.log_file(TABLE, table)
    figures: dict[str, float] = {"images": tally.read, "unreadable": tally.unread}
    said = f"{count(tally.read, 'image')} predicted"
    if tally.told:
        figures["accuracy"] = tally.accuracy
        of = f" of {tally.told:,} of them" if tally.told < tally.read else ""
        said += f", accuracy {tally.accuracy:.2%}{of} by the names of their folders"
        run.log_figure("plots/confusion_matrix.png", training.confusion_matrix(tally.counts, classes=model.classes))
    if tally.unread:
        said += f"; {count(tally.unread, 'file')} could not be read: their rows say why"
    run.log_results(figures)
    run.set_description(said)
    others = join_names(found.folders_without_class(model.classes))
    why = [f"no accuracy, as folders are not called as classes of the model: {others}"] * bool(others)
    return [said, *why, f"model    {model.model_id} of run {model.run_id}", f"table    {table}", f"run      {run.id}"]


def _written(file: TextIO, rows: Iterable[Prediction], model: LoggedModel, found: ImageFiles) -> PredictionSummary:
    """Write a row an answer, as they come."""
    tally = PredictionSummary(len(model.classes))
    writer = csv.writer(file)
    others = [column for place in range(2, TOP + 1) for column in (f"class_{place}", f"probability_{place}")]
    writer.writerow(["file", "class", "probability", *others, "truth", "error"])
    for answer, truth in zip(rows, found.labels_from_folders(model.classes), strict=True):
        tally.add(answer, truth)
        best = [cell for place, share in answer.best for cell in (model.classes[place], f"{share:.6f}")]
        best += [""] * (2 * TOP - len(best))  # of a file that is no image, or a model of two classes
        told = "" if truth is None else model.classes[truth]
        writer.writerow([found.display_name(answer.file), *best, told, answer.fault])
    return tally


@contextmanager
def _open_own_run(asked: PredictCommand, model: LoggedModel) -> Iterator[TrackedRun]:
    """The prediction's run: the one that `mlflow run` opened, else a new one in the present experiment."""
    with start_run(role=Role.PREDICT) as run:
        run.set_name(f"predictions of {asked.images.name}"[:200])
        run.set_tags(
            code_version_tags()
            | {
                Tag.PREDICT_MODEL: asked.model,
                Tag.PREDICT_MODEL_ID: model.model_id,
                Tag.PREDICT_TRAINED_BY: model.run_id,
                Tag.PREDICT_IMAGES: str(asked.images),
            }
        )
        yield run


def _made(table: Path) -> Path:
    """A table's place, in a folder that is made for it."""
    try:
        table.parent.mkdir(parents=True, exist_ok=True)
        table.touch()
    except OSError as error:
        raise UsageError(f"folder must be writable, got {table.parent}: {error.strerror}; name another") from None
    return table
