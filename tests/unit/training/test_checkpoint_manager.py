"""Checkpoints of a run: saved on this machine, uploaded to its artifacts, and removed when it has finished."""

import errno
import logging
import shutil

import mlflow
import numpy as np
import pytest

from pipeline.config.training import TrainingConfig
from pipeline.runtime.files import cache_folder
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.tags import Role, Tag
from pipeline.training import checkpoint, checkpoint_manager
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
def make_manager(run_id):
    """Return a function that makes a manager with this number of minutes between uploads."""
    return lambda minutes=None: CheckpointManager(
        run_id, TrainingConfig(checkpoint_minutes=minutes), fingerprint="f00d"
    )


def state(epoch):
    return TrainingState(epoch, {"loss": [1.0] * epoch}, [np.arange(4.0)], [])


def wait_for_upload(manager):
    """Wait for the running upload."""
    manager._uploader.wait(60)


def test_save_keeps_each_epoch_on_this_machine_with_the_settings_of_the_run(make_manager, run_id):
    manager = make_manager()
    manager.save(state(1))
    manager.save(state(2))
    checkpoint_found = read_checkpoint(manager.newest())
    assert (checkpoint_found.run_id, checkpoint_found.fingerprint, checkpoint_found.state.epoch) == (run_id, "f00d", 2)
    assert TrainingConfig.build(checkpoint_found.settings) == TrainingConfig(checkpoint_minutes=None)


def test_upload_final_with_checkpoint_minutes_none_uploads_nothing(make_manager, client, run_id):
    manager = make_manager(None)
    manager.save(state(1))
    manager.upload_final()
    assert uploaded_checkpoints(TrackingClient(), run_id) == []


def test_upload_before_its_minutes_have_passed_happens_at_a_stop_only(make_manager, client, run_id):
    manager = make_manager(1000)
    manager.save(state(1))
    wait_for_upload(manager)
    assert uploaded_checkpoints(TrackingClient(), run_id) == []
    manager.upload_final()
    wait_for_upload(manager)
    assert uploaded_checkpoints(TrackingClient(), run_id) == ["epoch-000001.checkpoint"]


def test_upload_replaces_the_one_before_and_is_complete(make_manager, client, run_id, tmp_path):
    manager = make_manager(0)
    for epoch in (1, 2, 3):
        manager.save(state(epoch))
        wait_for_upload(manager)
    (name,) = uploaded_checkpoints(TrackingClient(), run_id)
    downloaded = download_checkpoint(TrackingClient(), run_id, name, tmp_path / "new")
    assert read_checkpoint(downloaded).state.epoch == 3
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]
    assert not list(checkpoint_folder(run_id).glob("*.sending"))


def test_upload_that_fails_leaves_the_copy_before_it(make_manager, client, run_id, monkeypatch):
    manager = make_manager(0)
    manager.save(state(1))
    wait_for_upload(manager)

    def fail(*arguments):
        raise ConnectionError("away")

    with monkeypatch.context() as failing:
        failing.setattr(manager._uploader._client, "upload_artifact", fail)
        manager.save(state(2))
        wait_for_upload(manager)
    assert uploaded_checkpoints(TrackingClient(), run_id) == ["epoch-000001.checkpoint"]


def test_save_that_runs_out_of_memory_warns_and_keeps_the_last_checkpoint(make_manager, monkeypatch, caplog):
    manager = make_manager()
    manager.save(state(1))

    def no_memory(*arguments):
        raise MemoryError("Unable to allocate 9 GiB")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(checkpoint.os, "fsync", no_memory)
        manager.save(state(2))
    (warning,) = caplog.messages
    assert "could not be written: Unable to allocate 9 GiB" in warning
    assert read_checkpoint(manager.newest()).state.epoch == 1


def test_save_after_the_cache_was_removed_creates_it_again(make_manager, run_id):
    manager = make_manager()
    manager.save(state(1))
    shutil.rmtree(cache_folder())
    manager.save(state(2))
    assert read_checkpoint(manager.newest()).state.epoch == 2


def test_clear_removes_local_and_uploaded_checkpoints(make_manager, client, run_id):
    manager = make_manager(0)
    manager.save(state(1))
    manager.clear()
    assert not checkpoint_folder(run_id).exists()
    assert client.list_artifacts(run_id) == []


def test_new_manager_removes_the_folders_of_interrupted_uploads(make_manager, run_id):
    (checkpoint_folder(run_id) / "tmpabc.sending").mkdir(parents=True)
    make_manager()
    assert list(checkpoint_folder(run_id).iterdir()) == []


def test_save_with_a_full_disk_warns_once_and_keeps_the_last_checkpoint(make_manager, monkeypatch, caplog):
    manager = make_manager()
    manager.save(state(1))

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(checkpoint.os, "fsync", full)
        manager.save(state(2))
        manager.save(state(3))
    (warning,) = caplog.messages
    assert "could not be written: No space left on device" in warning
    assert read_checkpoint(manager.newest()).state.epoch == 1
    manager.save(state(4))
    assert read_checkpoint(manager.newest()).state.epoch == 4


def test_upload_to_a_store_that_refuses_warns_once(make_manager, monkeypatch, caplog):
    manager = make_manager(0)

    def refuse(*arguments):
        raise PermissionError("no\nentry")

    monkeypatch.setattr(manager._uploader._client, "upload_artifact", refuse)
    with caplog.at_level(logging.WARNING):
        for epoch in (1, 2):
            manager.save(state(epoch))
            wait_for_upload(manager)
    (warning,) = caplog.messages
    assert "could not be copied to the run's artifacts: PermissionError: no" in warning
    assert "\n" not in warning


def test_upload_final_without_a_checkpoint_removes_the_empty_folder(make_manager, run_id):
    manager = make_manager()
    checkpoint_folder(run_id).mkdir(parents=True)
    manager.upload_final()
    assert not checkpoint_folder(run_id).exists()


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with mlflow_store(tmp_path):
        yield mlflow.MlflowClient()


def test_remove_finished_removes_checkpoints_of_finished_runs_only(client):
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


@pytest.mark.parametrize("status", ["FAILED", "KILLED", "FINISHED"])
def test_remove_finished_keeps_those_of_a_finished_fold_until_the_run_of_all_folds_has_finished(client, run_id, status):
    experiment = mlflow.get_experiment_by_name("mine").experiment_id
    tags = {Tag.ROLE: Role.FOLD, Tag.PARENT_RUN_ID: run_id}
    fold = client.create_run(experiment, tags=tags).info.run_id
    client.set_terminated(fold, "FINISHED")
    client.set_terminated(run_id, status)
    checkpoint_folder(fold).mkdir(parents=True)
    remove_finished()
    assert checkpoint_folder(fold).exists() == (status != "FINISHED")


def test_remove_finished_without_any_checkpoint_does_nothing(client):
    remove_finished()


def test_clear_of_a_run_without_checkpoints_does_nothing(make_manager):
    make_manager().clear()


@pytest.mark.parametrize("minutes", [0, 1])
def test_upload_is_due_after_its_minutes(make_manager, monkeypatch, minutes):
    clock, uploads = [1000.0], []
    monkeypatch.setattr(checkpoint_manager.time, "monotonic", lambda: clock[0])
    manager = make_manager(minutes)
    monkeypatch.setattr(manager._uploader, "_upload", uploads.append)
    for epoch, seconds in enumerate((59.9, 0.1, 59.9, 0.1), start=1):
        clock[0] += seconds
        manager.save(state(epoch))
        wait_for_upload(manager)
    expected = [1, 2, 3, 4] if minutes == 0 else [2, 4]
    assert [path.name for path in uploads] == [f"epoch-{epoch:06d}.checkpoint" for epoch in expected]


def test_upload_final_uploads_no_checkpoint_twice(make_manager, monkeypatch):
    manager = make_manager(0)
    manager.save(state(1))
    wait_for_upload(manager)
    monkeypatch.setattr(manager._uploader, "_start", lambda file: pytest.fail("it is there already"))
    manager.upload_final()


def test_upload_final_waits_for_the_running_upload_and_its_own_for_three_seconds_in_all(make_manager, monkeypatch):
    manager, steps = make_manager(1000), []
    manager.save(state(1))
    monkeypatch.setattr(manager._uploader, "wait", steps.append)
    monkeypatch.setattr(manager._uploader, "_start", lambda file: steps.append(file.name))
    manager.upload_final()
    assert steps == [1.5, "epoch-000001.checkpoint", 1.5]
    monkeypatch.setattr(checkpoint_manager, "remove_uploads", lambda *given, **named: steps.append((given, named)))
    manager.clear()
    uploader = manager._uploader
    assert steps[3:] == [60.0, ((uploader._client, uploader._run_id), {})], "at the end there is more time"


def test_upload_runs_in_a_thread_that_keeps_no_process_alive(make_manager, monkeypatch, run_id):
    threads = []

    class Thread(checkpoint_manager.threading.Thread):
        def __init__(self, **options):
            super().__init__(**options)
            threads.append(self)

    monkeypatch.setattr(checkpoint_manager.threading, "Thread", Thread)
    manager = make_manager(0)
    manager.save(state(1))
    (thread,) = [thread for thread in threads if thread.name == "checkpoint"]
    assert thread.daemon
    thread.join(60)
    assert manager._uploader._uploaded == "epoch-000001.checkpoint"


def test_save_uploads_nothing_while_an_upload_is_running(make_manager, monkeypatch):
    manager, release, uploads = make_manager(0), checkpoint_manager.threading.Event(), []

    def upload(file):
        uploads.append(file.name)
        release.wait(60)

    monkeypatch.setattr(manager._uploader, "_upload", upload)
    manager.save(state(1))
    manager.save(state(2))
    release.set()
    wait_for_upload(manager)
    manager.save(state(3))
    wait_for_upload(manager)
    assert uploads == ["epoch-000001.checkpoint", "epoch-000003.checkpoint"]


def test_uploaded_checkpoints_are_the_newest_first_and_no_other_files(client, run_id, tmp_path):
    for name in ("epoch-000009.checkpoint", "epoch-000010.checkpoint", "notes.txt"):
        (tmp_path / name).write_text("any")
        client.log_artifact(run_id, str(tmp_path / name), "checkpoint")
    names = ["epoch-000010.checkpoint", "epoch-000009.checkpoint"]
    assert uploaded_checkpoints(TrackingClient(), run_id) == names


def test_remove_finished_removes_what_a_finished_run_has_uploaded(client, make_manager, run_id):
    manager = make_manager(0)
    manager.save(state(1))
    wait_for_upload(manager)
    client.set_terminated(run_id, "FINISHED")
    remove_finished()
    assert uploaded_checkpoints(TrackingClient(), run_id) == [] and not checkpoint_folder(run_id).exists()


def test_save_with_a_full_disk_says_from_where_the_run_can_be_resumed(make_manager, monkeypatch, caplog):
    manager = make_manager()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "a file")

    monkeypatch.setattr(checkpoint_manager, "write_checkpoint", full)
    manager.save(state(1))
    assert caplog.messages == [
        "the checkpoint could not be written: No space left on device; the run can be resumed from the one before"
    ]
    assert manager.newest() is None
