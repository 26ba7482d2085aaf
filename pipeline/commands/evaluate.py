"""The command `evaluate`: measure calibration and robustness of a logged model, and show what it looks at.

The images are those of its own data set or of any other with the same classes. The results are logged to the MLflow run
that trained the model, below evaluation/<dataset>-<split>; evaluating the same images again replaces the tables and
figures. Each evaluation on the test set of the training data is counted there, and reported by `report`.
"""

import re
from collections.abc import Mapping

from pipeline.commands.evaluate_calibration import (
    describe_calibrated,
    fit_on_validation,
    log_calibrated_model,
    validation_data,
)
from pipeline.commands.evaluate_results import EvaluationPlace, class_lines, log_evaluation, summarize
from pipeline.commands.unseen_images import load_unseen_images, tags_of_test_access
from pipeline.config.commands import EvaluateCommand
from pipeline.data.subset import Subset, build_subset
from pipeline.evaluation.calibration import measure_scaled
from pipeline.evaluation.robustness import BINS, EvaluationResult, evaluate_robustness
from pipeline.runtime.console import Console
from pipeline.runtime.errors import UsageError
from pipeline.runtime.tables import markdown_text
from pipeline.runtime.text import count
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.lifecycle import start_run
from pipeline.tracking.models import CALIBRATED, find_model, load_model, logged_metadata, resolve_model_uri
from pipeline.tracking.ownership import require_server
from pipeline.tracking.project_run import ProjectRun, close_if_unused
from pipeline.tracking.query import TrainingRun, get_training_run
from pipeline.tracking.registry import find_version, pin_version
from pipeline.tracking.run import TrackedRun
from pipeline.tracking.tags import Role, Tag

ARTIFACT_FOLDER = "evaluation"
# characters that neither a metric's name nor an artifact's path should have
NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_.-]+")
MAX_NAME_CHARACTERS = 60


def run_evaluation(command: EvaluateCommand, console: Console) -> EvaluationResult:
    """Evaluate a model, log the results to the run that trained it, and return them.

    That run keeps its status. The evaluation has a run of its own below it, the one that `mlflow run` opened or a new
    one, which says how the evaluation ended.

    Raises:
        UsageError: The model, the run that trained it or the images do not exist or cannot be read; the images have
            other classes or another shape than the model takes; the model's files are not those that were logged; or
            the artifact store refuses the results, which have been printed then.
    """
    with require_server():
        client = TrackingClient()
        uri = resolve_model_uri(client, command.model)
        # an alias is looked up once: until the results are logged, a training may give it to another model
        pinned = pin_version(client, uri)
        logged_model = find_model(client, pinned)
        training_run = get_training_run(client, str(logged_model.source_run_id))
        metadata = logged_metadata(client, logged_model)
        registered = training_run.run.data.tags.get(Tag.REGISTERED)
        version = find_version(client, pinned, registered) if command.settings.calibrate else None
    training = training_run.run.info

    with close_if_unused(ProjectRun.find_below(training.run_id)):
        # what can be refused without TensorFlow, before that is imported
        dataset = load_unseen_images(
            training_run,
            metadata,
            dataset=command.settings.dataset,
            split_name=command.settings.split,
            remedy="split=test, or a dataset of other images",
        )
        validation = validation_data(training_run, dataset, command.settings)
        is_calibrated = logged_model.name == CALIBRATED
        if command.settings.calibrate:
            _check_can_calibrate(validation, is_calibrated=is_calibrated, model=uri)
        model = load_model(client, str(logged_model.model_uri))
        subset = build_subset(dataset, command.settings.split, classes=model.classes, image_shape=model.image_shape)
        temperature = validation if isinstance(validation, str) else fit_on_validation(model, validation)
        if command.settings.calibrate:
            _check_can_calibrate(temperature, is_calibrated=is_calibrated, model=uri)
        console.print(
            f"model    {model.model_id} of run {training.run_id} ({training.run_name})",
            f"images   {subset}: {count(len(subset.split), 'image')}, {len(model.classes)} classes",
        )
        if command.settings.dataset is None and training_run.fingerprint not in {"", dataset.fingerprint}:
            console.warn(
                f"{dataset.name} has changed since the run was trained on it; its {command.settings.split} images are "
                "the same"
            )

        with start_run(
            role=Role.EVALUATE,
            parent=training.run_id,
            experiment_id=training.experiment_id,
            tags={Tag.EVALUATION_MODEL: uri, Tag.EVALUATION_IMAGES: str(subset)},
        ) as run:
            run.set_name(f"evaluation on {subset}")
            run.set_tags({Tag.DATA_FINGERPRINT: dataset.fingerprint})
            for notice in run.notices:
                console.print(notice)
            folder = _artifact_folder(subset, training_run, ending=f"-{CALIBRATED}" if is_calibrated else "")
            # before the images are predicted: whoever stops the process afterwards may have seen the results
            accesses = _record_evaluation(client, run.id, training_run, subset, folder)
            step = _next_step(client, training.run_id, folder)
            result = evaluate_robustness(
                model.predict_proba,
                subset.split,
                subset.labels,
                classes=model.classes,
                corrupted_images=command.settings.corrupted_images,
                report=console.print,
            )
            scaled = None
            if isinstance(temperature, str):
                console.print(f"no temperature was fitted: {temperature}")
            else:
                scaled = measure_scaled(result.probabilities, subset.labels, temperature.value, bins=BINS)
            logged_to = TrackedRun(training.run_id, run.outbox, training_run.run)
            place = EvaluationPlace(folder, step, training.run_name, of_model=not is_calibrated)
            log_evaluation(logged_to, result, scaled, subset, model, place)
            summary = summarize(result, scaled, subset)
            run.set_description(markdown_text(summary))
            console.print("", *class_lines(result, model.classes), "", summary)
            if accesses:
                console.print(f"test set evaluated {accesses} times so far, training included")
            # in an outage the outbox keeps the files; after a refusal no version is registered that has none
            logged_to.check_artifacts_accepted()
            if command.settings.calibrate and not isinstance(temperature, str):
                log_calibrated_model(logged_to, version, model, temperature, console)
            logged_to.write_model_card()

    if pending := run.outbox.pending():
        console.print(pending)
    elif command.settings.calibrate and (line := describe_calibrated(client, training.run_id)):
        console.print(line)
    console.print(f"run      {training.run_id}: {folder} among its metrics and artifacts")
    return result


def _check_can_calibrate(found: object, *, is_calibrated: bool, model: str) -> None:
    """Raise UsageError if the model has a temperature, or `found` is the reason why none can be fitted."""
    if is_calibrated:
        raise UsageError(f"calibrate must be false for a model that is calibrated already, got true for {model}")
    if isinstance(found, str):
        raise UsageError(
            f"calibrate must be false for a model to which no temperature can be fitted, got true: {found}"
        )


def artifact_dir(dataset: str, split_name: str) -> str:
    """Return <dataset>-<split>, the part of metric names and artifact paths that names an evaluation."""
    name = NOT_IN_A_NAME.sub("-", dataset).strip("-.")[:MAX_NAME_CHARACTERS]
    return f"{name or 'data'}-{split_name}"


def unique_artifact_dir(subset: Subset, fingerprints: Mapping[str, str], *, ending: str = "") -> str:
    """Return the name of an evaluation, with a part of the images' fingerprint if other images have the plain name.

    Args:
        subset: The images.
        fingerprints: Those of the images that names have been given to, by name.
        ending: Of the name, for another model of the same run.
    """
    fingerprint = subset.dataset.fingerprint
    name = artifact_dir(subset.dataset.name, subset.split_name)
    is_free = fingerprints.get(name + ending, fingerprint) == fingerprint
    return f"{name}{ending}" if is_free else f"{name}-{fingerprint[:8]}{ending}"


def _artifact_folder(subset: Subset, training_run: TrainingRun, *, ending: str) -> str:
    """Return where an evaluation is logged: a path among artifacts, and the beginning of its metrics' names.

    The splits of the run's own training data have their plain names before any other images.
    """
    tags, prefix = training_run.run.data.tags, f"{Tag.EVALUATION}."
    fingerprints = {name.removeprefix(prefix): value for name, value in tags.items() if name.startswith(prefix)}
    if training_run.fingerprint:
        for split_name in ("test", "validation"):
            fingerprints[artifact_dir(tags.get(Tag.DATA, ""), split_name) + ending] = training_run.fingerprint
    return f"{ARTIFACT_FOLDER}/{unique_artifact_dir(subset, fingerprints, ending=ending)}"


def _record_evaluation(
    client: TrackingClient, run_id: str, training_run: TrainingRun, subset: Subset, folder: str
) -> int | None:
    """Record in the training run which images an evaluation is of, and count it if they are the run's test set.

    Returns:
        How often the test set of the training data has been evaluated; None if it is not this one.
    """
    name = folder.removeprefix(f"{ARTIFACT_FOLDER}/")
    tags = {f"{Tag.EVALUATION}.{name}": subset.dataset.fingerprint}
    access = tags_of_test_access(subset.dataset, subset.split_name, training_run, by=run_id)
    client.set_tags(training_run.run.info.run_id, {**tags, **access})
    return int(access[Tag.TEST_SET_ACCESSES]) if access else None


def _next_step(client: TrackingClient, run_id: str, folder: str) -> int:
    """Return the step of a new evaluation's metrics: one more than the last evaluation of the same images has."""
    points = client.get_metric_history(run_id, f"{folder}/accuracy")
    return 1 + max((point.step for point in points), default=0)
