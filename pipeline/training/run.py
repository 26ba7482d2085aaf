"""One training run from its settings to its results: train, evaluate on the test set, log everything to MLflow."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import keras

from pipeline.config.data_checks import slow_batch_norm, unequal_classes
from pipeline.config.monitor import describe_test, metric_words
from pipeline.config.recipe import to_yaml
from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import Dataset
from pipeline.model.size import count_parameters
from pipeline.notifications.notifier import Notifier
from pipeline.runtime.console import Console
from pipeline.runtime.device import Device, select_device, unused_gpu
from pipeline.runtime.errors import Diverged, OutOfMemory
from pipeline.runtime.files import renew_temporary_files
from pipeline.runtime.out_of_memory import describe_oom, is_oom_error
from pipeline.runtime.shell import mlflow_command, project_command
from pipeline.runtime.text import count, format_metric
from pipeline.serving.packaging import import_onnx
from pipeline.tracking.lifecycle import start_run
from pipeline.tracking.models import MODEL
from pipeline.tracking.outbox.outbox import PATIENCE_SECONDS
from pipeline.tracking.run import TrackedRun
from pipeline.tracking.run_events import send_events
from pipeline.tracking.tags import Role, Tag, TrialOutcome
from pipeline.training.auto_settings import resolve_auto
from pipeline.training.callbacks import CheckpointSaver, KernelSnapshots, ProgressReporter
from pipeline.training.checkpoint import TrainingState
from pipeline.training.checkpoint_manager import CheckpointManager, checkpoint_folder, remove_finished
from pipeline.training.description import (
    CONFIG_FILE,
    REFIT,
    changes_to_recipe,
    describe_splits,
    run_description,
)
from pipeline.training.fit import (
    TIMINGS,
    TrainingResult,
    fit,
    many_left_out,
    require_initial_weights,
    require_teacher,
    steps_per_epoch,
)
from pipeline.training.folds import FoldCheckpoints, best_metrics, train_folds
from pipeline.training.initial_weights import InitialWeights
from pipeline.training.results import (
    evaluate_on_test_set,
    log_out_of_fold_predictions,
    log_trained_model,
    log_training,
    log_validation_predictions,
    middle_block,
    register_model,
)
from pipeline.training.resume import ResumePoint
from pipeline.training.run_metadata import (
    log_fold_start,
    log_origin,
    log_run_metadata,
    log_teacher,
    replay_logged_epochs,
)
from pipeline.training.teacher import Teacher

Checkpoints = CheckpointManager | FoldCheckpoints

SMALL_SIDE = 32  # pixels; smaller images have little to lose


@dataclass(frozen=True)
class FinishedRun:
    """A training run that has ended well, and its results."""

    run: TrackedRun
    name: str
    results: dict[str, float]  # by the name of the metric
    summary: str  # one line


def run_training(
    recipe: str,
    config: TrainingConfig,
    dataset: Dataset,
    *,
    console: Console,
    recipe_config: TrainingConfig | None = None,
    resume_point: ResumePoint | None = None,
    initial_weights: InitialWeights | None = None,
    teacher: Teacher | None = None,
    notifier: Notifier | None = None,
) -> FinishedRun:
    """Train one model in a run of its own, or resume a run, and return its results.

    Args:
        recipe: Name or path, for the run's name and parameters.
        config: The run's settings, checked against the data.
        dataset: The run's data.
        console: Shows the device, the model and each epoch.
        recipe_config: The recipe's own settings, to which name and description compare the run's; None is `config`.
        initial_weights: The weights of `config.weights_from`, checked against settings and data.
        teacher: The model of `config.teacher`, checked against the data.
        resume_point: The run to resume; None starts a new one, or the one that `mlflow run` opened.
        notifier: Sends what happens to those who are to be notified; None sends nothing.

    Raises:
        Diverged: The loss became NaN or infinite; the run is closed as FAILED.
        Stopped: Ctrl-C, SIGTERM or SIGHUP; the run is closed as KILLED.
        UsageError: The settings do not suit the device, a model that they name is not given, or the tracking store does
            not answer.
    """
    began = time.perf_counter()
    if not resume_point:
        require_initial_weights(config, dataset, initial_weights)
    require_teacher(config, dataset, teacher)
    changes = resume_point.changes if resume_point else changes_to_recipe(config, recipe_config or config)
    if config.register_as:
        # what is imported at the end of a run is imported before its first epoch
        import_onnx()
    device = select_device(config.devices)
    config = resolve_auto(config, dataset, device)
    start = resume_point.checkpoint.state if resume_point and not config.folds else None
    with (
        start_run(
            role=Role.RUN,
            resume=resume_point.run if resume_point else None,
            resume_name=resume_point.name if resume_point else "",
            # a resumed run keeps those of its beginning
            tags={}
            if resume_point
            else {Tag.DATA: dataset.name, Tag.DEVICE: str(device), Tag.PRECISION: config.precision},
            system_metrics=True,
        ) as run,
        send_events(run, notifier or Notifier()) as events,
        checkpoint_on_exit(run, checkpoints_of(run.id, config, dataset), console) as manager,
        explain_out_of_memory(run, config, dataset),
    ):
        remove_finished()
        if resume_point:
            name = replay_logged_epochs(run, start)
            # as it was: it shows whether the run's artifacts can still be written
            run.log_text(CONFIG_FILE, to_yaml(TrainingConfig.build(resume_point.checkpoint.settings)))
        else:
            name = log_run_metadata(run, recipe, config, dataset, changes)
            if initial_weights:
                log_origin(run, initial_weights)
            if teacher:
                log_teacher(run, teacher)
        run.check_artifacts_writable()
        described = resume_point.recipe if resume_point else recipe
        describe = partial(run_description, described, changes, dataset, device=str(device))
        resume_command = project_command("train", "--resume", run.id)
        run.set_description(describe(result="not finished yet", commands={"resume": resume_command}))
        announce(config, dataset, device, console)
        if initial_weights:
            console.print(f"weights  {initial_weights.describe(config, dataset)}")
        if teacher:
            console.print(f"teacher  {teacher.describe(config, dataset)}")
        for source in (initial_weights, teacher and teacher.network):
            if source and (leak := source.leak(dataset)):
                console.warn(leak)
        for notice in run.notices:
            console.print(notice)
        if resume_point:
            console.print(f"resume   {resume_point}")

        def report(of: TrackedRun, epoch: int, metrics: dict[str, float]) -> None:
            report_epoch(of, config, console, epoch, metrics)
            events.beat()

        model: keras.Model
        with events.watch_epochs():
            if isinstance(manager, FoldCheckpoints):
                folds = train_folds(
                    run,
                    config,
                    dataset,
                    manager,
                    log_start=partial(log_fold_start, recipe, config),
                    report_epoch=report,
                    console=console,
                    resumed=resume_point.folds if resume_point else {},
                    initial_weights=initial_weights,
                    teacher=teacher,
                    strategy=device.strategy(),
                )
                model, validated = folds.model(), folds.metrics()
                console.print(log_out_of_fold_predictions(run, dataset, folds.probabilities))
            else:
                own_report = partial(report, run)
                result = train_network(
                    run, config, dataset, manager, device, console, start, initial_weights, teacher, own_report
                )
                model, validated = result.model, best_metrics(result)
        log_trained_model(run, model, config, dataset)

        results = evaluate_on_test_set(run, model, config, dataset)
        if not config.folds and not config.refit:
            log_validation_predictions(run, model, config, dataset)
        results |= validated
        results["parameters"] = model.count_params()
        if config.register_as:
            results["latency_ms"] = register_model(run, model, config, dataset, results)
        seconds_before = resume_point.seconds if resume_point else 0.0
        results["seconds"] = seconds_before + time.perf_counter() - began
        run.log_results(results)
        summary = summarize(results, config, dataset)
        serve_command = mlflow_command("models", "serve", "-m", f"runs:/{run.id}/{MODEL}", "--env-manager", "local")
        run.set_description(describe(result=summary, commands={"serve": serve_command}, seconds=results["seconds"]))
        # within the block that says how to resume
        run.wait_until_logged(PATIENCE_SECONDS)
        events.send("finished", f"finished: {summary}", metrics=results)
    manager.clear()
    return FinishedRun(run, name, results, summary)


def checkpoints_of(run_id: str, config: TrainingConfig, dataset: Dataset) -> Checkpoints:
    """Return what keeps the checkpoints of a run, or of its folds."""
    if config.folds:
        return FoldCheckpoints(config, fingerprint=dataset.fingerprint)
    return CheckpointManager(run_id, config, fingerprint=dataset.fingerprint)


def train_network(
    run: TrackedRun,
    config: TrainingConfig,
    dataset: Dataset,
    manager: CheckpointManager,
    device: Device,
    console: Console,
    start: TrainingState | None,
    initial_weights: InitialWeights | None,
    teacher: Teacher | None,
    report: Callable[[int, dict[str, float]], None],
) -> TrainingResult:
    """Train the one network of a run without folds, and log how it went."""
    snapshots = KernelSnapshots(
        checkpoint_folder(run.id), epochs=config.epochs, steps=config.filter_steps, block=middle_block(config)
    )
    saver = CheckpointSaver(manager.save)
    reporter = ProgressReporter(report)
    result = fit(
        config,
        dataset,
        [snapshots, saver, reporter],
        start=start,
        initial_weights=initial_weights,
        teacher=teacher,
        strategy=device.strategy(),
        progress_bar=console.is_terminal,
    )
    log_training(run, config, result, snapshots=snapshots.load())
    return result


@contextmanager
def checkpoint_on_exit(run: TrackedRun, manager: Checkpoints, console: Console) -> Iterator[Checkpoints]:
    """Leave what resuming needs if the block raises: the newest checkpoint, and a line that says how to resume.

    After `Diverged` the checkpoints are removed, as a resumed run would diverge again. A run that another process has
    resumed meanwhile is left to that process.
    """
    try:
        yield manager
    except Diverged:
        manager.clear()
        raise
    except BaseException:
        if not run.is_superseded:
            manager.upload_final()
            if manager.newest():
                console.note(f"resume   {project_command('train', '--resume', run.id)}")
        raise


@contextmanager
def explain_out_of_memory(run: TrackedRun, config: TrainingConfig, dataset: Dataset) -> Iterator[None]:
    """Raise OutOfMemory in place of what TensorFlow, NumPy or the system raises, and tag the run as trials are.

    Raises:
        OutOfMemory: The memory of the host or of the device does not suffice.
    """
    try:
        yield
    except Exception as error:
        if not is_oom_error(error):
            raise
        run.set_tags({Tag.REASON: str(TrialOutcome.OOM)})
        raise OutOfMemory(f"{describe_oom(error)}; {less_memory(config, dataset.image_shape)}") from None


def less_memory(config: TrainingConfig, image_shape: tuple[int, ...]) -> str:
    """Return which settings take less memory than these, and how much: activations take most of it."""
    height, width, _ = image_shape
    cures = ["data_on=host"] if config.data_on == "device" else []
    if config.batch_size > 1:
        cures.append(f"batch_size={config.batch_size // 2}, which takes about half of it")
    patch_size = 2 * config.patch_size
    if height % patch_size == width % patch_size == 0:
        cures.append(f"patch_size={patch_size}, about a quarter")
    if config.image_size is not None or min(height, width) > SMALL_SIDE:
        cures.append("a smaller image_size, by its square")
    return f"try {' or '.join(cures) or 'fewer filters'}"


def announce(config: TrainingConfig, dataset: Dataset, device: Device, console: Console) -> None:
    """Print the data, the model and the device, and warn of what will slow the training down."""
    height, width, channels = dataset.image_shape
    console.print(
        f"data     {dataset.name}: {describe_splits(dataset)} of {height}x{width}x{channels}, "
        f"{len(dataset.classes)} classes"
    )
    if dataset.duplicates:
        part = "split or fold" if dataset.folds else "split"
        console.warn(f"{dataset.duplicates:,} images of one {part} are, pixel for pixel, also in another {part}")
    parameters = count_parameters(config.model, dataset.image_shape, len(dataset.classes))
    console.print(
        f"model    ConvMixer-{config.filters}/{config.depth}, kernel {config.kernel_size}, "
        f"patch {config.patch_size}: {parameters:,} parameters" + (", one for each fold" if config.folds else "")
    )
    traits = [str(device), config.precision]
    if config.fast_layers:
        traits.append("fast layers")
    if config.jit_compile:
        traits.append("compiled with XLA")
    if config.data_on == "device":
        traits.append("training images on the device")
    console.print(f"device   {', '.join(traits)}")
    steps = steps_per_epoch(config, len(dataset.train), devices=device.count)
    images = dict(zip(dataset.classes, dataset.train.class_sizes(len(dataset.classes)), strict=True))
    warnings = (
        unused_gpu(device),
        slow_batch_norm(config, steps_per_epoch=steps),
        unequal_classes(config, images),
        many_left_out(config, len(dataset.train), devices=device.count),
    )
    for warning in warnings:
        if warning:
            console.warn(warning)


def report_epoch(
    run: TrackedRun, config: TrainingConfig, console: Console, epoch: int, metrics: dict[str, float]
) -> None:
    """Log the metrics of an epoch and print them, unless the console shows Keras' progress bar, which has them.

    Warn if the run was interrupted after it had logged other values for this epoch, which MLflow keeps.
    """
    renew_temporary_files()
    conflicting = sorted(run.log_epoch(epoch, metrics) - set(TIMINGS))
    if conflicting:
        console.warn(
            f"epoch {epoch} had been logged with another {', '.join(conflicting)}, which stays: this device does not "
            "repeat to the last digit what the interrupted run computed"
        )
    if not console.is_terminal:
        shown = dict.fromkeys(("loss", "accuracy", "val_loss", "val_accuracy", config.monitor))
        # without validation images there are two
        values = "  ".join(f"{name} {metrics[name]:.4f}" for name in shown if name in metrics)
        console.print(
            f"epoch {epoch:>{len(str(config.epochs))}}/{config.epochs}  {values}  "
            f"{metrics['images_per_second']:,.0f} images/s  {metrics['epoch_seconds']:.1f} s"
        )


def summarize(results: dict[str, float], config: TrainingConfig, dataset: Dataset) -> str:
    """Return the results of a run in one line."""
    monitor = config.monitor
    # the test loss is in brackets
    test = describe_test("val_accuracy" if monitor == "val_loss" else monitor, results)
    if config.refit:
        selected = f"after the last of {count(config.epochs, 'epoch')}, {REFIT}"
    else:
        best = format_metric(monitor, results[f"best_{monitor}"], results.get(f"best_{monitor}_sd"))
        where = f"over {config.folds} folds" if config.folds else f"at epoch {results['best_epoch']} of {config.epochs}"
        selected = f"{metric_words(monitor)} {best} {where}"
    return (
        f"{test} (loss {results['test_loss']:.4f}, {len(dataset.test):,} images), {selected}; "
        f"{results['parameters']:,} parameters, {results['seconds']:.0f} s"
    )
