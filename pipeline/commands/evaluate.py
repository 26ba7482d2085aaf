"""A logged model, understood: `python -m pipeline evaluate runs:/<id>/model`.

It says how well the model's probabilities are calibrated, and how much accuracy noise, blur, lost contrast and JPEG
cost, on the test images of its own data set or on any other with the same classes. The results lie in the MLflow run
that trained the model, under evaluation/<dataset>-<split>; evaluating the same again replaces them. Each look at the
test images of the training data is counted there, and told in reports. TensorFlow and MLflow take seconds to import,
so they come after the command line has been accepted.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.config.commands import LATEST, RUN_ID, EvaluateCommand, EvaluateConfig
from pipeline.data.dataset import Dataset
from pipeline.data.subset import (
    Subset,
    build_subset,
    check_not_trained_on,
    check_same_classes,
    reload_dataset,
)
from pipeline.evaluation import metrics
from pipeline.evaluation.corruptions import CORRUPTIONS, STRENGTHS
from pipeline.evaluation.figures import robustness, training
from pipeline.evaluation.robustness import EvaluationResult, evaluate_robustness
from pipeline.runtime.text import count
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.models import MODEL, find_model, latest_model_uri, load_model, logged_classes
from pipeline.tracking.ownership import require_server
from pipeline.tracking.project_run import ProjectRun, close_if_unused
from pipeline.tracking.query import TrainingRun, get_training_run
from pipeline.tracking.run import TrackedRun, start_run
from pipeline.tracking.tags import Role, Tag
from pipeline.tracking.test_set_access import access_tags

ARTIFACT_FOLDER = "evaluation"
NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_.-]+")  # of a metric or a folder
MAX_NAME_CHARACTERS = 60


def plain_artifact_dir(dataset: str, split_name: str) -> str:
    """Return <dataset>-<split>, the part of metric names and artifact paths that names an evaluation."""
    plain = NOT_IN_A_NAME.sub("-", dataset).strip("-.")[:MAX_NAME_CHARACTERS]
    return f"{plain or 'data'}-{split_name}"


def artifact_dir(images: Subset, *, taken: Mapping[str, str]) -> str:
    """Return the plain name, or one with a part of the images' fingerprint if other images have the plain one.

    Args:
        taken: Fingerprints by the names that earlier evaluations have.
    """
    fingerprint = images.dataset.fingerprint
    plain = plain_artifact_dir(images.dataset.name, images.split_name)
    return plain if taken.get(plain, fingerprint) == fingerprint else f"{plain}-{fingerprint[:8]}"


def next_step(client: TrackingClient, run_id: str, where: str) -> int:
    """The step of a new evaluation at a place: how many have been logged there, and this one."""
    points = client.get_metric_history(run_id, f"{ARTIFACT_FOLDER}/{where}/accuracy")
    return 1 + max((point.step for point in points), default=0)


def log_evaluation(
    own: TrackedRun,
    run_id: str,
    measured: EvaluationResult,
    subject: Subset,
    classes: Sequence[str],
    *,
    where: str,
    step: int,
) -> None:
    """Send an evaluation to the run that trained the model, over what an earlier one left at the same place.

    Args:
        own: the evaluation's own run, which keeps what the tracking server does not take at once.
        where: see `artifact_dir`.
        step: of the metrics, see `next_step`.
    """
    named, folder = str(subject), f"{ARTIFACT_FOLDER}/{where}"
    tables = {
        "calibration.csv": measured.reliability,
        "corruptions.csv": measured.corruptions,
        "per_class.csv": metrics.per_class_table(measured.confusion, classes=classes),
        "predictions.csv": measured.predictions,
    }
    error, accuracy = measured.metrics["ece"], measured.corruptions["accuracy"]
    spoilt = measured.corruptions[measured.corruptions["strength"] > 0]
    figures = {
        "calibration.png": robustness.reliability_diagram(measured.reliability, error=error, subject=named),
        "corruptions.png": robustness.accuracy_by_strength(spoilt, clean=accuracy.iloc[0], subject=named),
        "corrupted_examples.png": robustness.corrupted_examples(
            measured.examples, corruptions=list(CORRUPTIONS), strengths=STRENGTHS
        ),
        "confusion_matrix.png": training.confusion_matrix(measured.confusion, classes=classes),
    }
    evaluated = TrackedRun(run_id, own.outbox)
    for name, table in tables.items():
        evaluated.log_table(f"{folder}/{name}", table)
    for name, figure in figures.items():
        evaluated.log_figure(f"{folder}/{name}", figure)
    evaluated.log_model_metrics({f"{folder}/{name}": value for name, value in measured.metrics.items()}, step=step)


@dataclass(frozen=True, eq=False)
class EvaluationInputs:
    """A model that is there, and images that can be read."""

    uri: str  # of the model
    source: TrainingRun
    data: Dataset
    settings: EvaluateConfig


@contextmanager
def resolve_inputs(asked: EvaluateCommand) -> Iterator[EvaluationInputs]:
    """The model and the images; the run that `mlflow run` opened does not stay open if nothing begins.

    Raises:
        UsageError: the model, its run or the images cannot be had, or have other classes.
    """
    client = TrackingClient()
    with require_server():
        uri = _model_uri(client, asked.model)
        found = find_model(client, uri)
        source = get_training_run(client, str(found.source_run_id))
        classes = logged_classes(found)
    project_run = ProjectRun.find()
    if project_run and project_run.id == source.run.info.run_id:
        # `mlflow run --run-id`: a training's run is no evaluation's
        project_run.claim()
        project_run = None
    with close_if_unused(project_run):
        data = reload_dataset(
            source.config.data,
            seed=source.config.seed,
            dataset=asked.settings.dataset,
            image_size=asked.settings.image_size,
        )
        check_not_trained_on(data, asked.settings.split, fingerprint=source.fingerprint)
        check_same_classes(data, classes or data.classes)
        yield EvaluationInputs(uri, source, data, asked.settings)


def _model_uri(client: TrackingClient, text: str) -> str:
    """Return the URI of the model that a person names."""
    if text == LATEST:
        return latest_model_uri(client)
    if RUN_ID.fullmatch(text):
        return f"runs:/{text}/{MODEL}"
    return text


Report = Callable[[str], None]


def run_evaluation(ready: EvaluationInputs, *, report: Report) -> list[str]:
    """Evaluate a model; returns lines for the terminal.

    The run that trained it gets the results and keeps its status. The evaluation has a run of its own below that, the
    one that `mlflow run` opened or a new one, which says how the evaluation ended.

    Args:
        report: called with lines on the way.

    Raises:
        UsageError: the model's files are not those that were logged, or the images have another shape than it takes.
    """
    client = TrackingClient()
    model = load_model(client, ready.uri)
    images = build_subset(ready.data, ready.settings.split, classes=model.classes, image_shape=model.image_shape)
    report(f"model    {model.model_id} of run {model.run_id} ({ready.source.run.info.run_name})")
    report(f"images   {images}: {count(len(images.split), 'image')}, {len(model.classes)} classes")
    if ready.settings.dataset is None and ready.source.fingerprint not in {"", ready.data.fingerprint}:
        report(f"warning: {ready.data.name} is not what it was when the run was trained on it")
    with _open_own_run(ready, images) as own:
        for notice in own.notices:
            report(notice)
        where = artifact_dir(images, taken=_check_owner(ready.source))
        opened = _say_what_is_opened(client, own, ready.source, images, where)
        step = next_step(client, model.run_id, where)
        measured = evaluate_robustness(
            model.predict_proba,
            images.split,
            images.labels,
            corrupted_images=ready.settings.corrupted_images,
            report=report,
        )
        log_evaluation(own, model.run_id, measured, images, model.classes, where=where, step=step)
        said = _summary(measured, images)
        own.set_description(said)
    kept = [line] if (line := own.outbox.pending()) else []
    return [
        "",
        said,
        *opened,
        *kept,
        f"run      {model.run_id}: {ARTIFACT_FOLDER}/{where} among its metrics and artifacts",
    ]


@contextmanager
def _open_own_run(ready: EvaluationInputs, images: Subset) -> Iterator[TrackedRun]:
    """The evaluation's run, below the one that trained the model, and beside it where nobody opened one elsewhere."""
    trained_in = ready.source.run.info
    with start_run(role=Role.EVALUATE, parent=trained_in.run_id, experiment_id=trained_in.experiment_id) as own:
        own.set_tags(
            {
                Tag.RUN_NAME: f"evaluation on {images}",
                Tag.EVALUATION_MODEL: ready.uri,
                Tag.EVALUATION_IMAGES: str(images),
                Tag.DATA_FINGERPRINT: images.dataset.fingerprint,
            }
        )
        yield own


def _say_what_is_opened(
    client: TrackingClient, own: TrackedRun, source: TrainingRun, images: Subset, where: str
) -> list[str]:
    """Tell the run that trained the model whose images an evaluation is of, and count it if they are its test images.

    Before they are predicted: whoever is killed then may have seen what came of it. Returns lines for the terminal.
    """
    run_id, tags = source.run.info.run_id, source.run.data.tags
    told, lines = {f"{Tag.EVALUATION}.{where}": images.dataset.fingerprint}, []
    if images.split_name == "test" and images.dataset.fingerprint == source.fingerprint:
        tested = "test_accuracy" in source.run.data.metrics
        told |= access_tags(tags, by=own.id, run_id=run_id, tested=tested)
        lines = [f"opened   the test images of its training data: {told[Tag.TEST_SET_ACCESSES]} times so far"]
    client.set_tags(run_id, told)
    return lines


def _check_owner(source: TrainingRun) -> dict[str, str]:
    """Fingerprints of data by the place of their evaluations; the run's own data have theirs before any other."""
    tags, prefix = source.run.data.tags, f"{Tag.EVALUATION}."
    earlier = {name.removeprefix(prefix): value for name, value in tags.items() if name.startswith(prefix)}
    own = {plain_artifact_dir(tags.get(Tag.DATA, ""), which): source.fingerprint for which in ("test", "validation")}
    return earlier | (own if source.fingerprint else {})


def _summary(measured: EvaluationResult, images: Subset) -> str:
    figures = measured.metrics
    return (
        f"{images}: accuracy {figures['accuracy']:.2%} of {count(len(images.split), 'image')}, expected calibration "
        f"error {figures['ece']:.2%} (mean confidence {figures['mean_confidence']:.2%}), negative log likelihood "
        f"{figures['nll']:.4f}, Brier score {figures['brier_score']:.4f}; mean accuracy under corruptions "
        f"{figures['mean_corruption_accuracy']:.2%}"
    )
