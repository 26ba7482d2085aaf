"""Checkpoints at rungs: saved there only, and found again only for the same training."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.config.training import TrainingConfig
from pipeline.search.executors.base import TrialJob
from pipeline.search.executors.rung_checkpoints import epochs_of, find_checkpoint, newest_file, save_at_rung, store_file
from pipeline.tracking.tags import RunRef
from pipeline.training.checkpoint import TrainingState, checkpoint_files

CONFIG = TrainingConfig.build({"epochs": 9})


def state(epoch):
    history = {"val_accuracy": [0.1 * n for n in range(epoch)]}
    return TrainingState(epoch, history, [np.ones(2, np.float32)], [np.ones(2, np.float32)])


@pytest.fixture
def job(tmp_path):
    return TrialJob(4, CONFIG, RunRef("", "abc"), "trial", checkpoints=tmp_path / "4", rungs=(1, 3))


def test_state_is_saved_at_rungs_only(job):
    for epoch in (1, 2, 3, 4):
        save_at_rung(job, CONFIG, "digits-1", state(epoch))
    assert [path.name for path in checkpoint_files(job.checkpoints)] == [
        "epoch-000003.checkpoint",
        "epoch-000001.checkpoint",
    ]
    save_at_rung(replace(job, checkpoints=None), CONFIG, "digits-1", state(1))


@pytest.mark.parametrize(
    ("resume", "config", "fingerprint", "found"),
    [
        (True, CONFIG, "digits-1", 3),
        (False, CONFIG, "digits-1", None),
        (True, CONFIG.model_copy(update={"depth": 3}), "digits-1", None),
        # with `auto` these depend on the device and on what else is in its memory
        (True, CONFIG.model_copy(update={"data_on": "device", "steps_per_execution": 16}), "digits-1", 3),
        (True, CONFIG, "digits-2", None),
    ],
)
def test_last_checkpoint_is_found_for_the_same_training_only(job, resume, config, fingerprint, found):
    for epoch in (1, 3):
        save_at_rung(job, CONFIG, "digits-1", state(epoch))
    known = find_checkpoint(replace(job, resume=resume), config, fingerprint)
    assert (known and known.epoch) == found


def test_damaged_checkpoint_is_passed_over(job):
    for epoch in (1, 3):
        save_at_rung(job, CONFIG, "digits-1", state(epoch))
    checkpoint_files(job.checkpoints)[0].write_bytes(b"damaged")
    assert find_checkpoint(replace(job, resume=True), CONFIG, "digits-1").epoch == 1


def test_checkpoint_that_cannot_be_written_is_reported(job, caplog):
    job.checkpoints.write_text("a file where the folder would be")
    save_at_rung(job, CONFIG, "digits-1", state(1))
    assert "the checkpoint of a rung could not be written" in caplog.text


def test_epochs_of_a_state_are_its_metrics_in_order():
    assert list(epochs_of(state(2))) == [{"val_accuracy": 0.0}, {"val_accuracy": 0.1}]


def test_finished_training_leaves_no_checkpoint(job):
    save_at_rung(replace(job, rungs=(9,)), CONFIG, "digits-1", state(9))
    assert newest_file(job.checkpoints) is None


def test_checkpoint_goes_to_another_machine_and_is_found_there(job, tmp_path):
    assert newest_file(None) is newest_file(job.checkpoints) is None
    for epoch in (1, 3):
        save_at_rung(job, CONFIG, "digits-1", state(epoch))
    file = newest_file(job.checkpoints)
    assert file.name == "epoch-000003.checkpoint" and newest_file(job.checkpoints, known=file.name) is None
    there = replace(job, checkpoints=tmp_path / "there" / "4", resume=True)
    for name in ("epoch-000001.checkpoint", "epoch-000002.checkpoint", file.name):
        store_file(there.checkpoints, file._replace(name=name))
    assert [path.name for path in checkpoint_files(there.checkpoints)] == [file.name, "epoch-000002.checkpoint"]
    assert find_checkpoint(there, CONFIG, "digits-1").epoch == 3
