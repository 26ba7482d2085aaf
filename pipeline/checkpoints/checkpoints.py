"""The checkpoints of a run under way: on this machine after each epoch, now and then among its artifacts."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline.cache import cache_folder
from pipeline.checkpoints import checkpoint
from pipeline.checkpoints.checkpoint import Checkpoint, State
from pipeline.checkpoints.checkpoint_copies import Copies
from pipeline.config import Config
from pipeline.printable import printable

LAST_SECONDS = 3.0  # for the copy of a run that is asked to stop: a spot machine takes its disk with it

log = logging.getLogger(__name__)


def folder_of(run_id: str) -> Path:
    """Where the checkpoints of a run lie on this machine, if it has any here."""
    return cache_folder("checkpoints", run_id)


class Checkpoints:
    """Keeps what a run can go on from. What fails here costs no more than a warning."""

    def __init__(self, run_id: str, config: Config, *, data: str) -> None:
        self._run_id = run_id
        self._settings = config.model_dump(mode="json")
        self._data = data
        self._folder = folder_of(run_id)
        self._warned: set[str] = set()
        self._copies = Copies(run_id, minutes=config.checkpoint_minutes, warn=self._warn)
        for left in self._folder.glob("*.sending"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)

    def save(self, state: Callable[[], State]) -> None:
        """Keep a state beside the one before."""
        try:
            path = checkpoint.write(self._folder, Checkpoint(self._run_id, self._settings, self._data, state()))
        except OSError as error:
            reason = error.strerror or error  # without the name of the file, which is new each time
            self._warn(f"the checkpoint could not be written: {reason}; the run can go on from the one before, if any")
        else:
            self._copies.offer(path)

    def newest(self) -> Path | None:
        """The newest that lies on this machine."""
        return next(iter(checkpoint.files(self._folder)), None)

    def hand_over(self) -> None:
        """Leave to whoever goes on all that can be left in a short time."""
        if path := self.newest():
            self._copies.send_last(path, seconds=LAST_SECONDS)
        else:
            shutil.rmtree(self._folder, ignore_errors=True)

    def clear(self) -> None:
        """Remove them all: nothing is left to be done, or nothing else would come of it."""
        self._copies.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _warn(self, line: str) -> None:
        """Say it once."""
        if line not in self._warned:
            self._warned.add(line)
            log.warning("warning: %s", printable(line))
