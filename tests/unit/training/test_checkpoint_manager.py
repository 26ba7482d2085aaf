"""The checkpoints of a run under way: on this machine, among its artifacts, and gone when nobody needs them."""

import errno
import logging

import mlflow
import numpy as np
import pytest

from pipeline.config.training import TrainingConfig
from pipeline.tracking.client import TrackingClient
from pipeline.training import checkpoint
from pipeline.training.checkpoint import TrainingState, read_checkpoint
from pipeline.training.checkpoint_manager import (
    CheckpointManager,
    checkpoint_folder,
    download_checkpoint,
    remove_finished,
    uploaded_checkpoints,
)
from tests.support.scripted import mlflow_store


@pytest.fixture
def run_id(client):
    return client.create_run(mlflow.get_experiment_by_name("mine").experiment_id).info.run_id


@pytest.fixture
def kept(run_id):
    """Makes the checkpoints of the run, for so many minutes between copies."""
    return lambda minutes=None: CheckpointManager(
        run_id, TrainingConfig(checkpoint_minutes=minutes), fingerprint="f00d"
    )


def state(epoch):
    return TrainingState(epoch, {"loss": [1.0] * epoch}, [np.arange(4.0)], [])


def copied(checkpoints):
    """Waits for the copy that is under way."""
    checkpoints._uploader.wait(60)


def test_each_epoch_is_kept_on_this_machine_with_the_run_s_settings(kept, run_id):
    checkpoints = kept()
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    found = read_checkpoint(checkpoints.newest())
    assert (found.run_id, found.fingerprint, found.state.epoch) == (run_id, "f00d", 2)
    assert TrainingConfig.build(found.settings) == TrainingConfig(checkpoint_minutes=None)


def test_none_copies_nothing(kept, client, run_id):
    checkpoints = kept(None)
    checkpoints.save(state(1))
    checkpoints.upload_final()
    assert uploaded_checkpoints(TrackingClient(), run_id) == []


def test_a_copy_waits_its_minutes_but_not_when_the_run_is_asked_to_stop(kept, client, run_id):
    checkpoints = kept(1000)
    checkpoints.save(state(1))
    copied(checkpoints)
    assert uploaded_checkpoints(TrackingClient(), run_id) == []
    checkpoints.upload_final()
    copied(checkpoints)
    assert uploaded_checkpoints(TrackingClient(), run_id) == ["epoch-000001.checkpoint"]


def test_the_newest_copy_alone_is_kept_and_is_whole(kept, client, run_id, tmp_path):
    checkpoints = kept(0)
    for epoch in (1, 2, 3):
        checkpoints.save(state(epoch))
        copied(checkpoints)
    (name,) = uploaded_checkpoints(TrackingClient(), run_id)
    downloaded = download_checkpoint(TrackingClient(), run_id, name, tmp_path / "new")
    assert read_checkpoint(downloaded).state.epoch == 3
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]
    assert not list(checkpoint_folder(run_id).glob("*.sending"))


def test_all_of_it_goes_when_the_run_ends_well(kept, client, run_id):
    checkpoints = kept(0)
    checkpoints.save(state(1))
    checkpoints.clear()
    assert not checkpoint_folder(run_id).exists()
    assert client.list_artifacts(run_id) == []


def test_what_killed_processes_left_goes_at_the_next_start(kept, run_id):
    (checkpoint_folder(run_id) / "tmpabc.sending").mkdir(parents=True)
    kept()
    assert list(checkpoint_folder(run_id).iterdir()) == []


def test_a_full_disk_is_one_warning_and_training_goes_on_with_the_last_good_one(kept, monkeypatch, caplog):
    checkpoints = kept()
    checkpoints.save(state(1))

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(checkpoint.os, "fsync", full)
        checkpoints.save(state(2))
        checkpoints.save(state(3))
    (warning,) = caplog.messages
    assert "could not be written: No space left on device" in warning
    assert read_checkpoint(checkpoints.newest()).state.epoch == 1
    checkpoints.save(state(4))
    assert read_checkpoint(checkpoints.newest()).state.epoch == 4


def test_an_artifact_store_that_refuses_is_one_warning(kept, monkeypatch, caplog):
    checkpoints = kept(0)

    def refuse(*arguments):
        raise PermissionError("no\nentry")

    monkeypatch.setattr(checkpoints._uploader._client, "upload_artifact", refuse)
    with caplog.at_level(logging.WARNING):
        for epoch in (1, 2):
            checkpoints.save(state(epoch))
            copied(checkpoints)
    (warning,) = caplog.messages
    assert "could not be copied to the run's artifacts: PermissionError: no" in warning
    assert "\n" not in warning


def test_a_run_stopped_before_its_first_epoch_leaves_no_empty_folder(kept, run_id):
    checkpoints = kept()
    checkpoint_folder(run_id).mkdir(parents=True)
    checkpoints.upload_final()
    assert not checkpoint_folder(run_id).exists()


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with mlflow_store(tmp_path):
        yield mlflow.MlflowClient()


def test_those_of_finished_runs_go_and_all_others_stay(client):
    experiment = mlflow.get_experiment_by_name("mine").experiment_id
    finished, failed, running = (client.create_run(experiment).info.run_id for _ in range(3))
    client.set_terminated(finished, "FINISHED")
    client.set_terminated(failed, "FAILED")
    others = [failed, running, "0" * 32]  # the last is another store's
    for run_id in (finished, *others):
        checkpoint_folder(run_id).mkdir(parents=True)
    remove_finished()
    assert not checkpoint_folder(finished).exists()
    assert all(checkpoint_folder(run_id).exists() for run_id in others)


def test_there_may_be_none(client):
    remove_finished()
