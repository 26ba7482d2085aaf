"""What an evaluation leaves: figures, tables and pictures in the run that trained the model."""

import time
from collections.abc import Sequence

from mlflow import MlflowClient

from pipeline import evaluation_plots, plots, scoring
from pipeline.corruptions import CORRUPTIONS, STRENGTHS
from pipeline.evaluation.measuring import Measured
from pipeline.evaluation.subject import Subject
from pipeline.outbox import files
from pipeline.tracked_run import Run

FOLDER = "evaluation"


def next_step(client: MlflowClient, run_id: str, where: str) -> int:
    """The step of a new evaluation at a place: how many have been logged there, and this one."""
    points = client.get_metric_history(run_id, f"{FOLDER}/{where}/accuracy")
    return 1 + max((point.step for point in points), default=0)


def leave(
    own: Run, run_id: str, measured: Measured, subject: Subject, classes: Sequence[str], *, where: str, step: int
) -> None:
    """Send an evaluation to the run that trained the model, over what an earlier one left at the same place.

    Args:
        own: the evaluation's own run, which keeps what the tracking server does not take at once.
        where: see `subject.place`.
        step: of the metrics, see `next_step`.
    """
    named, folder = str(subject), f"{FOLDER}/{where}"
    tables = {
        "calibration.csv": measured.bins,
        "corruptions.csv": measured.corruptions,
        "per_class.csv": scoring.per_class(measured.confusion, classes=classes),
        "predictions.csv": measured.predictions,
    }
    error, accuracy = measured.figures["ece"], measured.corruptions["accuracy"]
    spoilt = measured.corruptions[measured.corruptions["strength"] > 0]
    figures = {
        "calibration.png": evaluation_plots.reliability_diagram(measured.bins, error=error, subject=named),
        "corruptions.png": evaluation_plots.accuracy_by_strength(spoilt, clean=accuracy.iloc[0], subject=named),
        "corrupted_examples.png": evaluation_plots.corrupted_examples(
            measured.examples, corruptions=list(CORRUPTIONS), strengths=STRENGTHS
        ),
        "confusion_matrix.png": plots.confusion_matrix(measured.confusion, classes=classes),
    }
    for name, table in tables.items():
        text = table.to_csv(index=False)
        own.outbox.put("files", run_id=run_id, fill=files.text(f"{folder}/{name}", text))
    for name, figure in figures.items():
        own.outbox.put("files", run_id=run_id, fill=files.figure(f"{folder}/{name}", figure))
    now = int(1000 * time.time())
    points = [[f"{folder}/{name}", value, now, step] for name, value in measured.figures.items()]
    own.outbox.put("batch", {"metrics": points, "once": True, "of_model": True}, run_id=run_id)
