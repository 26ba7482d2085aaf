"""From what was asked to a table of predictions in a folder and in an MLflow run of its own."""

import csv
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
from mlflow import MlflowClient

from pipeline import logged_model, plots, track
from pipeline.code_version import code_version
from pipeline.errors import UsageError
from pipeline.lifetime import liveness, ownership
from pipeline.lifetime.ancestors import OPENED
from pipeline.logged_model import LoggedModel
from pipeline.predicting.answers import TOP, Answer, answers
from pipeline.predicting.asked import Asked
from pipeline.predicting.found import Found
from pipeline.printable import listed
from pipeline.style import count
from pipeline.tracked_run import Run

TABLE = "predictions.csv"


class Tally:
    """What a table's rows come to."""

    def __init__(self, classes: int) -> None:
        self.read = self.unread = 0
        self.why = ""  # the first file that could not be read
        self.counts = np.zeros((classes, classes), np.int64)  # row the truth, column the prediction

    def add(self, answer: Answer, truth: int | None) -> None:
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


def predict(asked: Asked, found: Found) -> list[str]:
    """Predict; returns lines for the terminal.

    A file that is no image has a row that says why; the others are predicted all the same.

    Raises:
        UsageError: the model cannot be had as it was logged, the folder cannot be written, or no file is an image.
    """
    with ownership.opening(MlflowClient(), os.environ.get(OPENED)):
        model = logged_model.load(asked.model)
        with _own_run(asked, model) as run:
            return [*liveness.lost(MlflowClient(), run.experiment_id), *_leave(run, asked, model, found)]


def _leave(run: Run, asked: Asked, model: LoggedModel, found: Found) -> list[str]:
    """Write the table, log it and what it comes to; returns lines for the terminal."""
    table = _made(asked.folder.absolute() / run.id / TABLE)
    with open(table, "w", encoding="utf-8", newline="") as file:
        tally = _written(file, answers(model, found.files), model, found)
    if not tally.read:
        raise UsageError(f"at least one file must be an image, got {count(tally.unread, 'file')}: {tally.why}")
    run.file(TABLE, table)
    figures: dict[str, float] = {"images": tally.read, "unreadable": tally.unread}
    said = f"{count(tally.read, 'image')} predicted"
    if tally.told:
        figures["accuracy"] = tally.accuracy
        of = f" of {tally.told:,} of them" if tally.told < tally.read else ""
        said += f", accuracy {tally.accuracy:.2%}{of} by the names of their folders"
        run.figure("plots/confusion_matrix.png", plots.confusion_matrix(tally.counts, classes=model.classes))
    if tally.unread:
        said += f"; {count(tally.unread, 'file')} could not be read: their rows say why"
    run.results(figures)
    run.describe(said)
    others = listed(found.other_folders(model.classes))
    why = [f"no accuracy, as folders are not called as classes of the model: {others}"] * bool(others)
    return [said, *why, f"model    {model.model_id} of run {model.run_id}", f"table    {table}", f"run      {run.id}"]


def _written(file: TextIO, rows: Iterable[Answer], model: LoggedModel, found: Found) -> Tally:
    """Write a row an answer, as they come."""
    tally = Tally(len(model.classes))
    writer = csv.writer(file)
    others = [column for place in range(2, TOP + 1) for column in (f"class_{place}", f"probability_{place}")]
    writer.writerow(["file", "class", "probability", *others, "truth", "error"])
    for answer, truth in zip(rows, found.truth(model.classes), strict=True):
        tally.add(answer, truth)
        best = [cell for place, share in answer.best for cell in (model.classes[place], f"{share:.6f}")]
        best += [""] * (2 * TOP - len(best))  # of a file that is no image, or a model of two classes
        told = "" if truth is None else model.classes[truth]
        writer.writerow([found.name(answer.file), *best, told, answer.fault])
    return tally


@contextmanager
def _own_run(asked: Asked, model: LoggedModel) -> Iterator[Run]:
    """The prediction's run: the one that `mlflow run` opened, else a new one in the present experiment."""
    client = MlflowClient()
    with track.run(system_metrics=False) as run:
        ownership.claim(client, run.id, {"role": "predict"})
        run.name(f"predictions of {asked.images.name}"[:200])
        run.tags(
            code_version()
            | {
                "predict.model": asked.model,
                "predict.model_id": model.model_id,
                "predict.trained_by": model.run_id,
                "predict.images": str(asked.images),
            }
        )
        with ownership.beating(client, run.id, taken=lambda process: None):
            yield run


def _made(table: Path) -> Path:
    """A table's place, in a folder that is made for it."""
    try:
        table.parent.mkdir(parents=True, exist_ok=True)
        table.touch()
    except OSError as error:
        raise UsageError(f"folder must be writable, got {table.parent}: {error.strerror}; name another") from None
    return table
