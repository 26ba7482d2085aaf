"""Checkpoints of trials at the rungs of successive halving, from which a promoted trial goes on."""

import logging
import shutil
from collections.abc import Iterator

from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import CorruptCheckpoint
from pipeline.search.executors.base import TrialJob
from pipeline.training.checkpoint import Checkpoint, TrainingState, checkpoint_files, read_checkpoint, write_checkpoint

log = logging.getLogger(__name__)


def save_at_rung(job: TrialJob, config: TrainingConfig, fingerprint: str, state: TrainingState) -> None:
    """Save the state of a trial if it has reached a rung; a failure costs a warning and, if it is promoted, time.

    Args:
        job: Of the trial.
        config: Its resolved settings.
        fingerprint: Of its data.
        state: After its last epoch.
    """
    if job.checkpoints is None or state.epoch not in job.rungs:
        return
    try:
        write_checkpoint(
            job.checkpoints, Checkpoint(job.run.run_id, config.model_dump(mode="json"), fingerprint, state)
        )
    except OSError as error:
        log.warning("the checkpoint of a rung could not be written: %s", error.strerror or error)
        shutil.rmtree(job.checkpoints, ignore_errors=True)


def find_checkpoint(job: TrialJob, config: TrainingConfig, fingerprint: str) -> TrainingState | None:
    """Return the state that a promoted trial goes on from; None, as on another node, lets it start again."""
    if job.checkpoints is None or not job.resume_after:
        return None
    for path in checkpoint_files(job.checkpoints):
        try:
            found = read_checkpoint(path)
        except (CorruptCheckpoint, OSError):
            continue
        same = found.settings == config.model_dump(mode="json") and found.fingerprint == fingerprint
        if same and found.state.epoch == job.resume_after:
            return found.state
    return None


def epochs_of(state: TrainingState) -> Iterator[dict[str, float]]:
    """Yield the metrics of each epoch of a state."""
    for epoch in range(state.epoch):
        yield {name: values[epoch] for name, values in state.history.items()}
