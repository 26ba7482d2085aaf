"""The data of a trial, and what a node sends beside training it."""

import socket
import time
from dataclasses import replace

import mlflow
import numpy as np
import pytest

from pipeline.config.training import TrainingConfig
from pipeline.model.conv_mixer import build_stock_model
from pipeline.runtime.errors import LimitExceeded, UsageError
from pipeline.search.executors import trial
from pipeline.search.executors.base import TrialJob
from pipeline.search.executors.slots import Slot
from pipeline.search.executors.trial import load_trial_data
from pipeline.search.executors.worker_process import StopRequested, WorkerContext
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.models import load_model, logged_splits
from pipeline.tracking.outbox.records import LogBatch, Point
from pipeline.tracking.outbox.spool import Spool
from pipeline.tracking.tags import RunRef, Tag, TrialOutcome
from pipeline.training.checkpoint import read_weights, write_weights
from tests.support.scripted import mlflow_store


@pytest.mark.parametrize(("role", "sent"), [("trial", True), ("step", False)])
def test_train_on_node_sends_records_of_earlier_trials_unless_only_timed(tmp_path, monkeypatch, role, sent):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    with mlflow_store(tmp_path) as uri:
        client = mlflow.MlflowClient()
        run_id = client.create_run("1").info.run_id
        spool = Spool(run_id, destination=uri)
        spool.put(LogBatch(run_id, metrics=[Point("loss", 0.5, 1, 1)], one_point_a_step=True))

        def train(job, context):
            deadline = time.monotonic() + (30 if sent else 0.5)
            while spool.folder.exists() and time.monotonic() < deadline:
                time.sleep(0.05)

        monkeypatch.setattr(trial, "train_trial", train)
        job = TrialJob(1, TrainingConfig.build({"dataset": "digits"}), RunRef(uri, "another"), role)
        trial.train_on_node(job, None)
        assert [point.step for point in client.get_metric_history(run_id, "loss")] == [1] * sent
        assert spool.folder.exists() != sent


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "dataset must hold the same images on every node: digits is another for the driver, got "),
        ({"dataset": "/no/such/folder"}, "dataset"),
    ],
)
def test_load_trial_data_with_other_images_than_the_driver_raises_usage_error_with_the_host(settings, reason):
    config = TrainingConfig.build({"dataset": "digits"} | settings)
    job = TrialJob(7, config, RunRef("", ""), "trial", fingerprint="another")
    with pytest.raises(UsageError) as error:
        load_trial_data(job)
    assert str(error.value).startswith(f"on {socket.gethostname()}: {reason}")


def test_load_trial_data_with_the_fingerprint_of_the_driver_returns_the_data():
    config = TrainingConfig.build({"dataset": "digits"})
    data = load_trial_data(TrialJob(7, config, RunRef("", ""), "trial"))
    same = TrialJob(7, config, RunRef("", ""), "trial", fingerprint=data.fingerprint)
    assert load_trial_data(same).fingerprint == data.fingerprint


def worker_context(stop_after=None):
    """Return the context of a trial that the driver asks to end after an epoch."""
    # A real one kills the process when its driver's end of the connection is closed
    context = WorkerContext.__new__(WorkerContext)
    context.slot, context.metrics, context._stop_reason = Slot("CPU", None, 1, None), {}, None
    context.reported, context.means = [], []

    def report(epoch, metrics):
        context.reported.append(epoch)
        context.means.append(metrics)
        if epoch == stop_after:
            context._stop_reason = TrialOutcome.PRUNED

    context.report = report
    return context


def test_promoted_trial_goes_on_as_if_it_had_never_been_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = {"dataset": "digits", "train_examples": 100, "batch_size": 50, "filters": 4, "depth": 1, "epochs": 3}
    settings |= {"schedule": "one_cycle", "translation": 1, "ema_momentum": 0.5}
    rung = {"checkpoints": tmp_path / "rungs", "rungs": (1,)}

    def train(name, stop_after=None, **more):
        run_id = client.create_run("1").info.run_id
        config, weights = TrainingConfig.build(settings), tmp_path / f"{name}.weights.npz"
        context = worker_context(stop_after)
        job = TrialJob(1, config, RunRef(uri, run_id), "trial", weights, **more)
        try:
            trial.train_trial(job, context)
        except StopRequested:
            assert stop_after
        curve = [point.value for point in client.get_metric_history(run_id, "val_accuracy")]
        return context, curve, read_weights(weights) if weights.exists() else None

    with mlflow_store(tmp_path) as uri:
        client = mlflow.MlflowClient()
        # without the checkpoint it starts again
        whole, curve, weights = train("whole", resume=True, checkpoints=tmp_path / "none", rungs=(1,))
        stopped, begun, _ = train("stopped", stop_after=1, **rung)
        began = time.perf_counter()
        promoted, continued, same = train("promoted", resume=True, **rung)
        assert 0 < promoted.metrics["seconds"] < time.perf_counter() - began
        assert (stopped.reported, promoted.reported) == ([1], [1, 2, 3])
        assert begun == curve[:1] and continued == curve
        assert promoted.metrics["resumed_after"] == 1
        assert "resumed_after" not in stopped.metrics and "resumed_after" not in whole.metrics
        assert promoted.metrics["best_val_accuracy"] == whole.metrics["best_val_accuracy"]
        for one, other in zip(weights, same, strict=True):
            np.testing.assert_array_equal(one, other)


def test_train_trial_with_folds_reports_and_ranks_by_the_mean_and_the_winner_is_the_mean_of_the_networks(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = {"dataset": "digits", "train_examples": 100, "folds": 2, "epochs": 2, "batch_size": 50, "filters": 4}
    config = TrainingConfig.build(settings | {"depth": 1, "kernel_size": 3, "learning_rate": 0.05})
    with mlflow_store(tmp_path) as uri:
        client = mlflow.MlflowClient()
        run_id = client.create_run("1").info.run_id
        job = TrialJob(1, config, RunRef(uri, run_id), "final", weights=tmp_path / "weights.npz")
        context = worker_context()
        trial.train_trial(job, context)
        metrics = context.metrics
        assert context.reported == [2, 4] and metrics["epochs"] == 4
        first, second = (report["val_accuracy"] for report in context.means)
        assert metrics["best_val_accuracy"] == second
        # of two values the deviation follows from their mean and the first one
        assert metrics["best_val_accuracy_sd"] == pytest.approx(abs(first - second) * 2**0.5)
        found = client.get_run(run_id).data.metrics
        assert found["best_val_accuracy"] == second and found["best_val_accuracy_sd"] == metrics["best_val_accuracy_sd"]
        assert [point.step for point in client.get_metric_history(run_id, "val_accuracy")] == [2, 4]
        assert not [name for name in found if name.startswith("test_")]

        winner = worker_context()
        trial.train_trial(replace(job, role="winner"), winner)
        model = load_model(TrackingClient(), f"runs:/{run_id}/model")
        assert model.model.name == "ensemble_of_2" and model.model.count_params() == metrics["parameters"]
        images, labels = load_trial_data(job).test.take(slice(None))
        accuracy = (model.predict_proba(images).argmax(axis=1) == labels).mean()
        assert winner.metrics["test_accuracy"] == pytest.approx(accuracy)
        tables = {file.path for file in client.list_artifacts(run_id)}
        assert {"validation_predictions.csv", "probably_mislabeled.csv"} <= tables


def test_winner_of_several_networks_is_their_mean_logged_in_its_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = {"dataset": "digits", "train_examples": 100, "batch_size": 50, "depth": 1, "kernel_size": 3}
    members = tuple(TrainingConfig.build(settings | {"filters": filters}) for filters in (4, 6))
    networks = [build_stock_model(config.model, (8, 8, 1), 10) for config in members]
    write_weights(tmp_path / "weights.npz", [array for network in networks for array in network.get_weights()])
    with mlflow_store(tmp_path) as uri:
        run_id = mlflow.MlflowClient().create_run("1").info.run_id
        winner = worker_context()
        job = TrialJob(-1, members[0], RunRef(uri, run_id), "winner", tmp_path / "weights.npz", members=members)
        trial.train_trial(job, winner)
        model = load_model(TrackingClient(), f"runs:/{run_id}/model").model
        assert model.count_params() == sum(network.count_params() for network in networks)
        found = mlflow.get_run(run_id).data.metrics
        assert found["test_accuracy"] == winner.metrics["test_accuracy"]
        # what a later run that learns from the model needs to know which images it has seen
        data = load_trial_data(job)
        digests = {"train": data.train.digest, "validation": data.validation.digest, "test": data.test.digest}
        assert logged_splits(TrackingClient(), run_id) == (data.fingerprint, digests)


def test_train_trial_beyond_the_latency_limit_is_infeasible_and_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = {"dataset": "digits", "train_examples": 100, "batch_size": 50, "filters": 4, "depth": 1}
    with mlflow_store(tmp_path) as uri:
        run_id = mlflow.MlflowClient().create_run("1").info.run_id
        job = TrialJob(1, TrainingConfig.build(settings), RunRef(uri, run_id), "trial", max_latency_ms=1e-6)
        context = worker_context()
        with pytest.raises(LimitExceeded, match="latency_ms must be at most max_latency_ms=1e-06, got ") as error:
            trial.train_trial(job, context)
        outcome, reason = context.classify_error(error.value)
        assert (outcome, reason) == (TrialOutcome.INFEASIBLE, str(error.value))
        assert context.metrics["latency_ms"] > 1e-6 and "epochs" not in context.metrics
        assert mlflow.get_run(run_id).data.tags[Tag.TRIAL_STATE] == "infeasible"


@pytest.mark.parametrize("role", ["trial", "step"])
def test_train_trial_trains_and_times_nothing_without_its_teacher(tmp_path, monkeypatch, role):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    teacher = f"models:/m-{'0' * 32}"
    settings = {"dataset": "digits", "train_examples": 100, "batch_size": 50, "filters": 4, "depth": 1}
    with mlflow_store(tmp_path) as uri:
        run_id = mlflow.MlflowClient().create_run("1").info.run_id
        job = TrialJob(1, TrainingConfig.build(settings | {"teacher": teacher}), RunRef(uri, run_id), role)
        context = worker_context()
        with pytest.raises(UsageError, match=f"^model must be in this tracking store, got {teacher}"):
            trial.train_trial(job, context)
        assert not context.reported and "step_seconds" not in context.metrics
