"""The training of one trial, in an MLflow run that its driver has opened; the test images have no part in it."""

import math
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

from pipeline.config.training import TrainingConfig, validate_against_data
from pipeline.data.dataset import Dataset, load_dataset
from pipeline.runtime.errors import UsageError
from pipeline.search.executors.base import TrialJob
from pipeline.search.executors.worker_process import WorkerContext
from pipeline.tracking.tags import Tag, TrialOutcome, trial_outcome_tags

if TYPE_CHECKING:
    from pipeline.runtime import device as devices
    from pipeline.tracking.run import TrackedRun

# Imported by the fork server for all trials. Here they come within functions only: a driver, which names train_trial
# and holds no device, is spared TensorFlow. Optuna is what a search's own module imports, and a process imports that.
PRELOADED = ("pipeline.training.run", "mlflow.store.tracking.sqlalchemy_store", "optuna")


def train_trial(job: TrialJob, trial: WorkerContext) -> None:
    """Train a job's configuration and leave its settings, metrics and end in its run.

    `trial.metrics` is kept up to date: epochs, best_val_accuracy, best_epoch, parameters, seconds, and tracing_seconds
    (building the model, and the first step with all that is traced and compiled for it); latency_ms where it is asked
    for. Of a job that is only timed, step_seconds and tracing_seconds, or latency_ms.
    """
    if job.timed:
        _time(job, trial)
        return
    os.environ["MLFLOW_TRACKING_URI"] = job.run.tracking_uri
    from pipeline.tracking import run as track

    with track.attach_run(job.run.run_id) as run:
        outcome = TrialOutcome.FINISHED
        try:
            (_measure if job.role == "winner" else _train)(job, trial, run)
        except BaseException as error:
            outcome, _ = trial.classify_error(error)
            raise
        finally:
            run.results(trial.metrics)
            run.tags(trial_outcome_tags(outcome))


def _setup(job: TrialJob, trial: WorkerContext) -> "tuple[TrainingConfig, Dataset, devices.Device]":
    """The resolved settings, the data and the device of a trial."""
    from pipeline.runtime import device as devices
    from pipeline.training.run import resolve_auto

    config, data = job.config, load_trial_data(job)
    validate_against_data(config, image_shape=data.image_shape, training_images=len(data.train))
    device = devices.select_device(config.devices)
    if unused := devices.unused_gpu(device):  # hours on a CPU that nobody looks at
        raise UsageError(f"{unused}; or hide it with CUDA_VISIBLE_DEVICES=-1")
    _limit_memory(trial.slot.memory_mib)
    return resolve_auto(config, data, device), data, device


def train_on_node(job: TrialJob, trial: WorkerContext) -> None:
    """`train_trial` where its driver cannot look; what earlier trials have left there, a lost one say, is sent too."""
    if not job.timed:
        os.environ["MLFLOW_TRACKING_URI"] = job.run.tracking_uri
        from pipeline.tracking.outbox.delivery import send_pending

        threading.Thread(target=send_pending, name="deliver", daemon=True).start()  # which may wait for the server
    train_trial(job, trial)


def load_trial_data(job: TrialJob) -> Dataset:
    """The data of a job, which its driver has seen: the same, where it told their fingerprint.

    Raises:
        UsageError: they are missing or others here; with the host, as it may be one of many.
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


def _time(job: TrialJob, trial: WorkerContext) -> None:
    from pipeline.training import benchmark

    config, data, _ = _setup(job, trial)
    if job.role == "step":
        trial.metrics.update(benchmark.time_training_step(config, data))
    else:
        trial.metrics["latency_ms"] = benchmark.time_inference(config, data)


def _measure(job: TrialJob, trial: WorkerContext, run: "TrackedRun") -> None:
    """Open the test set for the winner of a search, with the weights that its final training left."""
    from pipeline.training.run import evaluate_winner

    config, data, _ = _setup(job, trial)
    assert job.weights
    trial.metrics.update(evaluate_winner(run, config, data, job.weights))


def _train(job: TrialJob, trial: WorkerContext, run: "TrackedRun") -> None:
    from pipeline.training import checkpoint
    from pipeline.training.benchmark import time_inference
    from pipeline.training.callbacks import ProgressReporter
    from pipeline.training.fit import build_model, fit
    from pipeline.training.run import log_training

    began = time.perf_counter()
    config, data, device = _setup(job, trial)
    run.params({setting: config.text(setting) for setting in TrainingConfig.model_fields})
    run.tags({Tag.DEVICE: str(device), Tag.PRECISION: config.precision})
    figures = trial.metrics
    best = {"val_accuracy": -math.inf, "val_loss": math.inf}

    def step() -> None:
        figures.setdefault("tracing_seconds", time.perf_counter() - fitting)
        trial.raise_if_stopped()

    def epoch(number: int, metrics: dict[str, float]) -> None:
        trial.report(number, metrics)  # first, so that the driver can think while MLflow writes
        run.epoch(number, metrics)
        figures.update(epochs=number, seconds=time.perf_counter() - began)
        if metrics["val_accuracy"] > best["val_accuracy"]:
            best["val_accuracy"] = figures["best_val_accuracy"] = metrics["val_accuracy"]
            figures["best_epoch"] = number
        best["val_loss"] = figures["best_val_loss"] = min(best["val_loss"], metrics["val_loss"])
        trial.raise_if_stopped()

    fitting = time.perf_counter()
    figures["parameters"] = build_model(config, data).count_params()
    fitted = fit(config, data, [ProgressReporter(epoch, after_step=step)])
    if job.latency:
        figures["latency_ms"] = time_inference(config, data)
    if job.weights:
        log_training(run, config, fitted)
        checkpoint.write_weights(job.weights, fitted.model.get_weights())


def _limit_memory(mib: int | None) -> None:
    """Take a fixed part of the GPU's memory, or none where TensorFlow sees no GPU; None leaves it to growth."""
    import tensorflow as tf

    for gpu in tf.config.get_visible_devices("GPU") if mib else ():
        tf.config.set_logical_device_configuration(gpu, [tf.config.LogicalDeviceConfiguration(memory_limit=mib)])
