"""The training of one trial, in an MLflow run that its driver has opened; it does not use the test images."""

import math
import os
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pipeline.config.data_checks import validate_against_data
from pipeline.config.monitor import DIRECTIONS, sign
from pipeline.config.training import TrainingConfig
from pipeline.data.dataset import Dataset, load_dataset
from pipeline.model.size import count_parameters
from pipeline.runtime.errors import LimitExceeded, UsageError
from pipeline.runtime.files import renew_temporary_files
from pipeline.search.executors.base import TrialJob
from pipeline.search.executors.worker_process import WorkerContext
from pipeline.tracking.tags import Tag, TrialOutcome, trial_outcome_tags

# Here and in functions only: a driver, which names train_trial and holds no device, does not import TensorFlow.
if TYPE_CHECKING:
    import numpy.typing as npt

    from pipeline.runtime.device import Device
    from pipeline.tracking.run import TrackedRun
    from pipeline.training.initial_weights import InitialWeights
    from pipeline.training.teacher import Teacher

# Modules that the fork server imports for all trials.
PRELOADED_MODULES = ("pipeline.search.executors.preload",)


def train_trial(job: TrialJob, context: WorkerContext) -> None:
    """Train a job's configuration and log its settings, metrics and outcome to its run.

    Keeps `context.metrics` up to date:

    - of a trial or final: epochs, best_epoch and, of that epoch, best_val_accuracy and the others that validation has;
      parameters, seconds, tracing_seconds (to build the model and take the first step, with everything that is traced
      and compiled for it), and latency_ms if the job requests it; with folds those of the best epoch are means over
      these, beside their standard deviations;
    - of an ensemble: those of its evaluation on the validation images;
    - of a winner: those of its evaluation on the test set;
    - of a job that is only timed: step_seconds and tracing_seconds, or latency_ms.
    """
    if job.timed:
        _time(job, context)
        return
    os.environ["MLFLOW_TRACKING_URI"] = job.run.tracking_uri
    from pipeline.tracking.lifecycle import attach_run

    with attach_run(job.run.run_id) as run:
        outcome = TrialOutcome.FINISHED
        try:
            if job.role in ("ensemble", "winner"):
                _evaluate(job, context, run)
            else:
                _train(job, context, run)
        except BaseException as error:
            outcome, _ = context.classify_error(error)
            raise
        finally:
            run.log_results(context.metrics)
            run.set_tags(trial_outcome_tags(outcome))


def train_on_node(job: TrialJob, context: WorkerContext) -> None:
    """Run `train_trial` on a node of a cluster, and send what earlier trials have left unsent there.

    A trial whose task was lost, for example, leaves records that its driver cannot fetch.
    """
    if not job.timed:
        os.environ["MLFLOW_TRACKING_URI"] = job.run.tracking_uri
        from pipeline.tracking.outbox.delivery import send_pending

        # in a thread, as it may have to wait for the server
        threading.Thread(target=send_pending, name="deliver", daemon=True).start()
    train_trial(job, context)


def load_trial_data(job: TrialJob) -> Dataset:
    """Load the data of a job and check that they are the driver's, if the job holds their fingerprint.

    Raises:
        UsageError: they are missing or different on this node; the message names the host.
    """
    if job.fingerprint is None:
        return load_dataset(job.config.data, seed=job.config.seed)
    try:
        data = load_dataset(job.config.data, seed=job.config.seed)
    except UsageError as error:
        raise UsageError(f"on {socket.gethostname()}: {error}") from None
    if data.fingerprint != job.fingerprint:
        raise UsageError(
            f"on {socket.gethostname()}: dataset must hold the same images on every node: {job.config.dataset} is "
            f"{job.fingerprint} for the driver, got {data.fingerprint}"
        )
    return data


def _setup(job: TrialJob, context: WorkerContext) -> "tuple[TrainingConfig, Dataset, Device]":
    """Return the resolved settings, the data and the device of a trial."""
    from pipeline.runtime.device import select_device, unused_gpu
    from pipeline.training.auto_settings import resolve_auto

    config, data = job.config, load_trial_data(job)
    validate_against_data(config, image_shape=data.image_shape, training_images=len(data.train))
    device = select_device(config.devices)
    # else a search could train for hours on a CPU before anyone notices
    if unused := unused_gpu(device):
        raise UsageError(f"{unused}; or hide it with CUDA_VISIBLE_DEVICES=-1")
    limits = [limit for limit in (context.slot.memory_mib, job.max_memory_mb) if limit is not None]
    if limits:
        _limit_gpu_memory(min(limits))
    return resolve_auto(config, data, device), data, device


def _time(job: TrialJob, context: WorkerContext) -> None:
    """Time a training step or the inference of one image."""
    from pipeline.training.benchmark import time_inference, time_training_step

    os.environ["MLFLOW_TRACKING_URI"] = job.run.tracking_uri
    config, data, _ = _setup(job, context)
    if job.role == "step":
        context.metrics.update(time_training_step(config, data, _load_teacher(config, data)))
    else:
        context.metrics["latency_ms"] = time_inference(config, data)


def _load_teacher(config: TrainingConfig, data: Dataset) -> "Teacher | None":
    """Return the model that teaches a trial, checked against the data, or None if it has none."""
    if not config.teacher:
        return None
    from pipeline.training.teacher import Teacher

    teacher = Teacher.load(config.teacher)
    teacher.check(config, data)
    return teacher


def _evaluate(job: TrialJob, context: WorkerContext, run: "TrackedRun") -> None:
    """Evaluate the winner of a search on the test set, or an ensemble on the validation images, with given weights."""
    from pipeline.training.ensemble import evaluate_ensemble, measure_ensemble
    from pipeline.training.results import evaluate_winner
    from pipeline.training.run_metadata import log_splits

    config, data, _ = _setup(job, context)
    assert job.weights
    # by which a later run that starts from the model, or learns from it, knows the images that it has seen
    run.set_tags({Tag.DATA: data.name, Tag.DATA_FINGERPRINT: data.fingerprint})
    log_splits(run, data)
    if job.role == "ensemble":
        # the settings that all networks share: of the others it has several
        shared = [name for name in TrainingConfig.model_fields if len({one.text(name) for one in job.members}) == 1]
        run.log_params({name: config.text(name) for name in {*shared, "seed"}})
        results = measure_ensemble(run, config, job.members, data, job.weights, metric=job.metric)
    elif job.members:
        results = evaluate_ensemble(run, config, job.members, data, job.weights)
    else:
        results = evaluate_winner(run, config, data, job.weights)
    context.metrics.update(results)


def _train(job: TrialJob, context: WorkerContext, run: "TrackedRun") -> None:
    """Train a model, report each epoch to the driver and to the run, and end when the driver asks for it."""
    import keras

    from pipeline.search.executors.rung_checkpoints import epochs_of, find_checkpoint, save_at_rung
    from pipeline.training.benchmark import time_inference
    from pipeline.training.callbacks import CheckpointSaver, ProgressReporter
    from pipeline.training.checkpoint import write_weights
    from pipeline.training.description import REFIT
    from pipeline.training.fit import fit
    from pipeline.training.initial_weights import InitialWeights
    from pipeline.training.results import log_training

    trial_start = time.perf_counter()
    config, data, device = _setup(job, context)
    run.log_params({setting: config.text(setting) for setting in TrainingConfig.model_fields})
    refit = {Tag.REFIT: REFIT} if config.refit else {}
    run.set_tags({**refit, Tag.DEVICE: str(device), Tag.PRECISION: config.precision})
    metrics = context.metrics

    def after_step() -> None:
        metrics.setdefault("tracing_seconds", time.perf_counter() - fit_start)
        context.raise_if_stopped()

    def keep_best(epoch: int, epoch_metrics: dict[str, float]) -> None:
        best = metrics.get(f"best_{config.monitor}", -sign(config.monitor) * math.inf)
        if sign(config.monitor) * (epoch_metrics[config.monitor] - best) > 0:
            metrics.update({f"best_{metric}": epoch_metrics[metric] for metric in DIRECTIONS}, best_epoch=epoch)

    def after_epoch(epoch: int, epoch_metrics: dict[str, float]) -> None:
        renew_temporary_files()
        # before MLflow, so that the driver decides on pruning while that writes
        context.report(epoch, epoch_metrics)
        run.log_epoch(epoch, epoch_metrics)
        metrics.update(epochs=epoch, seconds=time.perf_counter() - trial_start)
        if config.refit:
            metrics["best_epoch"] = epoch
        else:
            keep_best(epoch, epoch_metrics)
        context.raise_if_stopped()

    fit_start = time.perf_counter()
    parameters = count_parameters(config.model, data.image_shape, len(data.classes))
    metrics["parameters"] = (config.folds or 1) * parameters
    if job.max_latency_ms is not None:
        metrics["latency_ms"] = time_inference(config, data)
        if metrics["latency_ms"] > job.max_latency_ms:
            raise LimitExceeded(
                f"latency_ms must be at most max_latency_ms={job.max_latency_ms:g}, got {metrics['latency_ms']:.2f}"
            )
    initial_weights = InitialWeights.load(config.weights_from) if config.weights_from else None
    if initial_weights:
        initial_weights.check(config, data.image_shape)
    teacher = _load_teacher(config, data)
    if config.folds:
        weights = _train_folds(config, data, context, run, initial_weights, teacher, after_step, began=trial_start)
    else:
        callbacks: list[keras.callbacks.Callback] = [ProgressReporter(after_epoch, after_step=after_step)]
        if job.checkpoints:
            callbacks.append(CheckpointSaver(partial(save_at_rung, job, config, data.fingerprint)))
        start = find_checkpoint(job, config, data.fingerprint)
        for epoch, epoch_metrics in enumerate(epochs_of(start) if start else (), start=1):
            # the driver does not know those between the last rung that it has seen and a kill
            context.report(epoch, epoch_metrics)
            run.log_epoch(epoch, epoch_metrics)
            keep_best(epoch, epoch_metrics)
        if start:
            metrics["resumed_after"] = start.epoch
        fitted = fit(config, data, callbacks, start=start, initial_weights=initial_weights, teacher=teacher)
        weights = fitted.model.get_weights()
        if job.weights:
            log_training(run, config, fitted)
    if job.latency and "latency_ms" not in metrics:
        metrics["latency_ms"] = time_inference(config, data)
    if job.weights:
        write_weights(job.weights, weights)


def _train_folds(
    config: TrainingConfig,
    data: Dataset,
    context: WorkerContext,
    run: "TrackedRun",
    initial_weights: "InitialWeights | None",
    teacher: "Teacher | None",
    after_step: Callable[[], None],
    *,
    began: float,
) -> "list[npt.NDArray]":
    """Train the network of each fold, and report the mean of the folds so far after each of them.

    Returns:
        The weights of all networks, one after another.
    """
    from pipeline.training.callbacks import ProgressReporter
    from pipeline.training.cross_validation import CrossValidation
    from pipeline.training.fit import fit
    from pipeline.training.folds import best_metrics

    metrics, folds = context.metrics, CrossValidation(config, data)

    def after_epoch(before: int, epoch: int, _: dict[str, float]) -> None:
        renew_temporary_files()
        metrics.update(epochs=before + epoch, seconds=time.perf_counter() - began)
        context.raise_if_stopped()

    for number in range(1, len(data.folds) + 1):
        reporter = ProgressReporter(partial(after_epoch, int(metrics.get("epochs", 0))), after_step=after_step)
        fitted = fit(config, data.fold(number), [reporter], initial_weights=initial_weights, teacher=teacher)
        folds.add(fitted.model, best_metrics(fitted))
        metrics.update(folds.metrics())
        means = {name.removeprefix("best_"): value for name, value in folds.metrics().items()}
        # at the same epoch in all trials, whenever a fold has stopped early
        context.report(number * config.epochs, means)
        run.log_epoch(number * config.epochs, {name: means[name] for name in DIRECTIONS})
        context.raise_if_stopped()
    return [weight for weights in folds.weights for weight in weights]


def _limit_gpu_memory(mib: int) -> None:
    """Give TensorFlow a fixed part of the GPU's memory; without a limit, what it takes grows with its needs."""
    import tensorflow as tf

    # an empty list where TensorFlow sees no GPU
    for gpu in tf.config.get_visible_devices("GPU"):
        tf.config.set_logical_device_configuration(gpu, [tf.config.LogicalDeviceConfiguration(memory_limit=mib)])
