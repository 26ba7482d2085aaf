"""The command `train`: train one model, or resume a run, and say what came of it and what to do next."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.config.data_checks import validate_against_data, validate_settings
from pipeline.config.recipe import TrainCommand
from pipeline.config.training import TrainingConfig
from pipeline.config.weights_from import weights_file
from pipeline.data.dataset import load_dataset
from pipeline.notifications.notifier import Notifier
from pipeline.runtime.compilation_cache import use_compilation_cache
from pipeline.runtime.console import Console
from pipeline.runtime.device import check_single_host, select_device
from pipeline.runtime.files import check_cache_writable, temporary_files
from pipeline.runtime.imports import slow_imports
from pipeline.runtime.shell import mlflow_command
from pipeline.runtime.urls import mask_password
from pipeline.tracking.project_run import ProjectRun

# MLflow and TensorFlow take seconds to import, so what uses them is imported inside the functions.
if TYPE_CHECKING:
    from pipeline.tracking.run import TrackedRun
    from pipeline.training.initial_weights import InitialWeights
    from pipeline.training.resume import ResumePoint
    from pipeline.training.teacher import Teacher


def train(command: TrainCommand, console: Console, notifier: Notifier | None = None) -> None:
    """Train one model, or resume a run, and print its results.

    Args:
        command: The parsed command line.
        console: Shows the results.
        notifier: Sends what happens to those who are to be notified.

    Raises:
        Diverged: The loss became NaN or infinite.
        NothingToDo: The run to resume has finished.
        UsageError: The settings, the data, the device or the tracking store cannot be used.
    """
    # before anything imports TensorFlow
    use_compilation_cache(os.environ)
    with _open_resume_point(command) as resume_point:
        config = resume_point.config if resume_point else command.config
        check_cache_writable()
        check_single_host(os.environ)
        begins = not resume_point or resume_point.has_folds_to_begin
        config, initial_weights, teacher = _load_models(config, begins=begins)
        # a resumed run keeps its settings, which may break a rule that is younger than it
        if not resume_point:
            # before a download
            validate_settings(config)
        dataset = load_dataset(config.data, seed=config.seed)
        if resume_point:
            resume_point.check_data(dataset)
        else:
            validate_against_data(config, image_shape=dataset.image_shape, training_images=len(dataset.train))
        if initial_weights:
            initial_weights.check(config, dataset.image_shape)
        if teacher:
            teacher.check(config, dataset)
        if resume_point and initial_weights:
            resume_point.check_weights(initial_weights.digest)
        with temporary_files("runs"):
            # only now that settings and data have been accepted
            with slow_imports():
                from pipeline.training.run import run_training
            finished = run_training(
                command.recipe,
                config,
                dataset,
                console=console,
                recipe_config=command.recipe_config,
                resume_point=resume_point,
                initial_weights=initial_weights,
                teacher=teacher,
                notifier=notifier,
            )
            console.print("", finished.summary, f"run       {finished.name}  {finished.run.id}")
            console.print(*next_steps(finished.run))


def _load_models(
    config: TrainingConfig, *, begins: bool
) -> "tuple[TrainingConfig, InitialWeights | None, Teacher | None]":
    """Load the models that the settings name, and return the settings with what they leave to these.

    Args:
        config: The settings.
        begins: Whether a training begins, which starts from `weights_from`.
    """
    origin = config.weights_from if begins else None
    if origin:
        # refused before anything slow is imported
        weights_file(origin)
    if not origin and not config.teacher:
        return config, None, None
    with slow_imports():
        from pipeline.training.initial_weights import InitialWeights
        from pipeline.training.teacher import Teacher
    # TensorFlow does not let its devices be set any more once a model has been loaded
    select_device(config.devices)
    initial_weights = InitialWeights.load(origin) if origin else None
    if initial_weights:
        config = initial_weights.complete(config)
    teacher = Teacher.load(config.teacher) if config.teacher else None
    if teacher:
        config = teacher.complete(config)
    return config, initial_weights, teacher


@contextmanager
def _open_resume_point(command: TrainCommand) -> "Iterator[ResumePoint | None]":
    """Find the run to resume, if one is named, and close the run that `mlflow run` opened if nothing begins in it.

    Without either, MLflow is neither imported nor asked before the data have been read.
    """
    if command.resume is None and ProjectRun.find() is None:
        yield None
        return
    from pipeline.training.resume import open_resume_point

    with open_resume_point(command.resume, command.overrides) as resume_point:
        yield resume_point


def next_steps(run: "TrackedRun") -> list[str]:
    """Return lines that say where the plots of a finished run are, and how to compare and serve it."""
    from pipeline.tracking.client import tracking_uri
    from pipeline.tracking.experiment_page import page_links

    lines = []
    if pending := run.outbox.pending():
        lines.append(pending)
    # a mlflow-artifacts: URI is the server's own, which nothing else opens
    if not run.artifact_uri.startswith("mlflow-artifacts:"):
        lines.append(f"plots     {run.artifact_uri}/plots")
    lines += page_links(run.experiment_id, run.id)
    if registration := run.describe_registration():
        lines.append(f"registry  {registration}")
    # after the registration, which makes it the version's
    if run.model_uri:
        store = f"MLFLOW_TRACKING_URI={shlex.quote(mask_password(tracking_uri()))}"
        serve = mlflow_command("models", "serve", "-m", run.model_uri, "--env-manager", "local")
        lines.append(f"serve     {store} {serve}")
    return lines
