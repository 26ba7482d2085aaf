"""An evaluation from its run's opening to its end."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlflow import MlflowClient

from pipeline import logged_model, track
from pipeline.evaluation.leaving import FOLDER, leave, next_step
from pipeline.evaluation.measuring import Measured, measure
from pipeline.evaluation.predicting import predictor
from pipeline.evaluation.preparing import Prepared
from pipeline.evaluation.subject import Subject, place, plain_place, subject
from pipeline.evaluation.trained import Trained
from pipeline.lifetime import liveness, ownership
from pipeline.lifetime.ancestors import OPENED
from pipeline.openings import opening
from pipeline.style import count
from pipeline.tracked_run import Run

Report = Callable[[str], None]


def evaluate(ready: Prepared, *, report: Report) -> list[str]:
    """Evaluate a model; returns lines for the terminal.

    The run that trained it gets the results and keeps its status. The evaluation has a run of its own below that, the
    one that `mlflow run` opened or a new one, which says how the evaluation ended.

    Args:
        report: called with lines on the way.

    Raises:
        UsageError: the model's files are not those that were logged, or the images have another shape than it takes.
    """
    client = MlflowClient()
    model = logged_model.load(ready.uri)
    images = subject(ready.data, ready.settings.split, classes=model.classes, image_shape=model.image_shape)
    report(f"model    {model.model_id} of run {model.run_id} ({ready.source.run.info.run_name})")
    report(f"images   {images}: {count(len(images.split), 'image')}, {len(model.classes)} classes")
    if ready.settings.dataset is None and ready.source.fingerprint not in {"", ready.data.fingerprint}:
        report(f"warning: {ready.data.name} is not what it was when the run was trained on it")
    with _own_run(client, ready, images) as own:
        for lost in liveness.lost(client, own.experiment_id):
            report(lost)
        where = place(images, taken=_taken(ready.source))
        opened = _say_what_is_opened(client, own, ready.source, images, where)
        step = next_step(client, model.run_id, where)
        measured = measure(
            predictor(model),
            images.split,
            images.labels,
            corrupted_images=ready.settings.corrupted_images,
            report=report,
        )
        leave(own, model.run_id, measured, images, model.classes, where=where, step=step)
        said = _said(measured, images)
        own.describe(said)
    kept = [line] if (line := own.outbox.left()) else []
    return ["", said, *opened, *kept, f"run      {model.run_id}: {FOLDER}/{where} among its metrics and artifacts"]


@contextmanager
def _own_run(client: MlflowClient, ready: Prepared, images: Subject) -> Iterator[Run]:
    """The evaluation's run, below the one that trained the model, and beside it where nobody opened one elsewhere."""
    trained_in = ready.source.run.info
    run_id = os.environ.pop(OPENED, None) or client.create_run(trained_in.experiment_id).info.run_id
    with track.run(system_metrics=False, resumed=run_id) as own:
        name = f"evaluation on {images}"
        ownership.nest(client, own.id, parent=trained_in.run_id, name=name, role="evaluate")
        own.tags(
            {
                "evaluation.model": ready.uri,
                "evaluation.images": str(images),
                "data.fingerprint": images.data.fingerprint,
            }
        )
        with ownership.beating(client, own.id, taken=lambda process: None):
            yield own


def _say_what_is_opened(client: MlflowClient, own: Run, source: Trained, images: Subject, where: str) -> list[str]:
    """Tell the run that trained the model whose images an evaluation is of, and count it if they are its test images.

    Before they are predicted: whoever is killed then may have seen what came of it. Returns lines for the terminal.
    """
    run_id, tags = source.run.info.run_id, source.run.data.tags
    told, lines = {f"{FOLDER}.{where}": images.data.fingerprint}, []
    if images.which == "test" and images.data.fingerprint == source.fingerprint:
        tested = "test_accuracy" in source.run.data.metrics
        told |= opening(tags, by=own.id, run_id=run_id, tested=tested)
        lines = [f"opened   the test images of its training data: {told['test_opened']} times so far"]
    ownership.tell(client, run_id, told)
    return lines


def _taken(source: Trained) -> dict[str, str]:
    """Fingerprints of data by the place of their evaluations; the run's own data have theirs before any other."""
    tags, prefix = source.run.data.tags, f"{FOLDER}."
    earlier = {name.removeprefix(prefix): value for name, value in tags.items() if name.startswith(prefix)}
    own = {plain_place(tags.get("data", ""), which): source.fingerprint for which in ("test", "validation")}
    return earlier | (own if source.fingerprint else {})


def _said(measured: Measured, images: Subject) -> str:
    figures = measured.figures
    return (
        f"{images}: accuracy {figures['accuracy']:.2%} of {count(len(images.split), 'image')}, expected calibration "
        f"error {figures['ece']:.2%} (mean confidence {figures['mean_confidence']:.2%}), negative log likelihood "
        f"{figures['nll']:.4f}, Brier score {figures['brier_score']:.4f}; mean accuracy under corruptions "
        f"{figures['mean_corruption_accuracy']:.2%}"
    )
