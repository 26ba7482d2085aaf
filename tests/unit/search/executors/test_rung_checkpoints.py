"""Checkpoints at rungs: saved there only, and found again only for the same training."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.config.training import TrainingConfig
from pipeline.search.executors.base import TrialJob
from pipeline.search.executors.rung_checkpoints import epochs_of, find_checkpoint, save_at_rung
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
    ("resume_after", "config", "fingerprint", "found"),
    [
        (1, CONFIG, "digits-1", 1),
        (3, CONFIG, "digits-1", 3),
        (0, CONFIG, "digits-1", None),
        (9, CONFIG, "digits-1", None),
        (3, CONFIG.model_copy(update={"depth": 3}), "digits-1", None),
        (3, CONFIG, "digits-2", None),
    ],
)
def test_checkpoint_is_found_for_the_same_training_and_epoch_only(job, resume_after, config, fingerprint, found):
    for epoch in (1, 3):
        save_at_rung(job, CONFIG, "digits-1", state(epoch))
    known = find_checkpoint(replace(job, resume_after=resume_after), config, fingerprint)
    assert (known and known.epoch) == found


def test_damaged_checkpoint_is_passed_over(job):
    save_at_rung(job, CONFIG, "digits-1", state(3))
    checkpoint_files(job.checkpoints)[0].write_bytes(b"damaged")
    assert find_checkpoint(replace(job, resume_after=3), CONFIG, "digits-1") is None


def test_checkpoint_that_cannot_be_written_is_reported(job, caplog):
    job.checkpoints.write_text("a file where the folder would be")
    save_at_rung(job, CONFIG, "digits-1", state(1))
    assert "the checkpoint of a rung could not be written" in caplog.text


def test_epochs_of_a_state_are_its_metrics_in_order():
    assert list(epochs_of(state(2))) == [{"val_accuracy": 0.0}, {"val_accuracy": 0.1}]
