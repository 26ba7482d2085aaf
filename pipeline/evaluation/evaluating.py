"""From a model's name to an evaluation in the run that trained it."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.tracking.fluent import _get_experiment_id

from pipeline import logged_model, track
from pipeline.errors import UsageError
from pipeline.evaluation.asked import Asked
from pipeline.evaluation.leaving import FOLDER, leave
from pipeline.evaluation.measuring import Measured, Predict, measure
from pipeline.evaluation.subject import Subject, place, plain_place, subject
from pipeline.evaluation.trained import Trained, trained
from pipeline.lifetime import ownership
from pipeline.lifetime.ancestors import OPENED
from pipeline.logged_model import LoggedModel
from pipeline.openings import opening
from pipeline.outbox.logged import MODEL
from pipeline.style import count
from pipeline.tracked_run import Run

RUN_ID = re.compile(r"[0-9a-f]{32}")
BATCH = 256  # images: more are no faster
Report = Callable[[str], None]


def evaluate(asked: Asked, *, report: Report) -> list[str]:
    """Evaluate a model; returns lines for the terminal.

    The run that trained it gets the results and keeps its status. The evaluation has a run of its own below that, the
    one that `mlflow run` opened or a new one, which says how the evaluation ended.

    Args:
        report: called with lines on the way.

    Raises:
        UsageError: the model, or images that fit it, cannot be had.
    """
    client = MlflowClient()
    with ownership.opening(client, os.environ.get(OPENED)):
        with ownership.answering():
            model = logged_model.load(_uri(client, asked.model))
            source = trained(client, model.run_id)
        images = subject(source.config, asked.settings, classes=model.classes, image_shape=model.image_shape)
        report(f"model    {model.model_id} of run {model.run_id} ({source.run.info.run_name})")
        report(f"images   {images}: {count(len(images.split), 'image')}, {len(model.classes)} classes")
        if asked.settings.dataset is None and source.fingerprint not in {"", images.data.fingerprint}:
            report(f"warning: {images.data.name} is not what it was when the run was trained on it")
        with _own_run(client, source, asked, images) as own:
            return _evaluate(client, own, model, source, images, asked, report)


def _evaluate(
    client: MlflowClient,
    own: Run,
    model: LoggedModel,
    source: Trained,
    images: Subject,
    asked: Asked,
    report: Report,
) -> list[str]:
    where = place(images, taken=_taken(source))
    tags = {f"{FOLDER}.{where}": images.data.fingerprint}
    opens = images.which == "test" and images.data.fingerprint == source.fingerprint
    if opens:
        run = source.run
        tags |= opening(run.data.tags, by=own.id, run_id=model.run_id, tested="test_accuracy" in run.data.metrics)
    ownership.tell(client, model.run_id, tags)  # before the images are seen: whoever is killed then has seen them
    measured = measure(
        _predict(model), images.split, images.labels, corrupted_images=asked.settings.corrupted_images, report=report
    )
    leave(own, model.run_id, measured, images, model.classes, where=where)
    said = _said(measured, images)
    own.describe(said)
    lines = ["", said, *[f"opened   the test set of its training data: {tags['test_opened']} times so far"] * opens]
    return [*lines, f"run      {model.run_id}: {FOLDER}/{where} among its artifacts and metrics"]


def _uri(client: MlflowClient, text: str) -> str:
    """What MLflow calls the model that a person names."""
    if RUN_ID.fullmatch(text):
        return f"runs:/{text}/{MODEL}"
    if text != "latest":
        return text
    experiment = str(_get_experiment_id())
    newest = [{"field_name": "creation_timestamp", "ascending": False}]
    for model in client.search_logged_models([experiment], f"name = '{MODEL}'", order_by=newest):
        if model.status == LoggedModelStatus.READY:
            return str(model.model_uri)
    name = client.get_experiment(experiment).name
    raise UsageError(f"model=latest must find a logged model: experiment {name} has none; train first")


@contextmanager
def _own_run(client: MlflowClient, source: Trained, asked: Asked, images: Subject) -> Iterator[Run]:
    """The evaluation's run, below the one that trained the model and beside it where nobody opened another."""
    trained_in = source.run.info
    run_id = os.environ.pop(OPENED, None) or client.create_run(trained_in.experiment_id).info.run_id
    about = {"evaluation.model": asked.model, "evaluation.images": str(images)}
    with track.run(system_metrics=False, resumed=run_id) as own:
        name = f"evaluation on {images}"
        ownership.nest(client, own.id, parent=trained_in.run_id, name=name, role="evaluate")
        own.tags(about | {"data.fingerprint": images.data.fingerprint})
        with ownership.beating(client, own.id, taken=lambda process: None):
            yield own


def _taken(source: Trained) -> dict[str, str]:
    """Fingerprints of data by the place of their evaluations; the run's own data have theirs before any other."""
    tags, prefix = source.run.data.tags, f"{FOLDER}."
    earlier = {name.removeprefix(prefix): value for name, value in tags.items() if name.startswith(prefix)}
    own = {plain_place(tags.get("data", ""), which): source.fingerprint for which in ("test", "validation")}
    return earlier | (own if source.fingerprint else {})


def _predict(model: LoggedModel) -> Predict:
    return lambda images: model.model.predict(images.astype(np.float32), batch_size=BATCH, verbose=0)


def _said(measured: Measured, images: Subject) -> str:
    figures = measured.figures
    return (
        f"{images}: accuracy {figures['accuracy']:.2%} of {count(len(images.split), 'image')}, expected calibration "
        f"error {figures['ece']:.2%} (mean confidence {figures['mean_confidence']:.2%}), negative log likelihood "
        f"{figures['nll']:.4f}, Brier score {figures['brier_score']:.4f}; mean accuracy under corruptions "
        f"{figures['mean_corruption_accuracy']:.2%}"
    )
