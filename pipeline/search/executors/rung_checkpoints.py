"""Checkpoints of trials at the rungs of successive halving, from which a promoted or a killed trial goes on."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.config.training import CHANGE_ROUNDING, TrainingConfig
from pipeline.runtime.errors import CorruptCheckpoint
from pipeline.runtime.files import make_private, write_atomic
from pipeline.search.executors.base import TrialJob
from pipeline.training.checkpoint import (
    GENERATIONS,
    Checkpoint,
    TrainingState,
    checkpoint_files,
    read_checkpoint,
    write_checkpoint,
)

log = logging.getLogger(__name__)


class CheckpointFile(NamedTuple):
    """A checkpoint on its way between a node and its driver."""

    name: str
    content: bytes


def save_at_rung(job: TrialJob, config: TrainingConfig, fingerprint: str, state: TrainingState) -> None:
    """Save the state of a trial if it has reached a rung; a failure costs a warning and, if it is promoted, time.

    Args:
        job: Of the trial.
        config: Its resolved settings.
        fingerprint: Of its data.
        state: After its last epoch.
    """
    if job.checkpoints is None or state.epoch not in job.rungs or state.epoch >= config.epochs:
        return
    try:
        write_checkpoint(
            job.checkpoints, Checkpoint(job.run.run_id, config.model_dump(mode="json"), fingerprint, state)
        )
    except OSError as error:
        _warn(job.checkpoints, error)


def find_checkpoint(job: TrialJob, config: TrainingConfig, fingerprint: str) -> TrainingState | None:
    """Return the state that a trial goes on from, the last of those that are there, or None."""
    if job.checkpoints is None or not job.resume:
        return None
    wanted = _compared(config.model_dump(mode="json"))
    for path in checkpoint_files(job.checkpoints):
        try:
            found = read_checkpoint(path)
        except (CorruptCheckpoint, OSError):
            continue
        if _compared(found.settings) == wanted and found.fingerprint == fingerprint:
            return found.state
    return None


def _compared(settings: Mapping[str, object]) -> dict[str, object]:
    """Return the settings without those that the device may have chosen otherwise when the trial began."""
    return {name: value for name, value in settings.items() if name not in CHANGE_ROUNDING}


def epochs_of(state: TrainingState) -> Iterator[dict[str, float]]:
    """Yield the metrics of each epoch of a state."""
    for epoch in range(state.epoch):
        yield {name: values[epoch] for name, values in state.history.items()}


def newest_file(folder: Path | None, *, known: str = "") -> CheckpointFile | None:
    """Return the newest checkpoint of a trial's folder; None if there is none, or only one of the name `known`."""
    for path in checkpoint_files(folder) if folder else ():
        if path.name == known:
            return None
        try:
            return CheckpointFile(path.name, path.read_bytes())
        except OSError:
            continue
    return None


def store_file(folder: Path, file: CheckpointFile) -> None:
    """Write a checkpoint from another machine into a trial's folder, where only the newest ones are kept."""
    try:
        make_private(folder)
        write_atomic(folder / file.name, file.content)
        for old in checkpoint_files(folder)[GENERATIONS:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        _warn(folder, error)


def _warn(folder: Path, error: OSError) -> None:
    log.warning("the checkpoint of a rung could not be written: %s", error.strerror or error)
    shutil.rmtree(folder, ignore_errors=True)
