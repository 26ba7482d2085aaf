"""The checkpoints of a run under way: on this machine after each epoch, now and then among its artifacts."""

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pipeline.config.training import TrainingConfig
from pipeline.runtime.files import cache_folder, make_private
from pipeline.runtime.text import printable
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Checkpoint, TrainingState

UPLOAD_FOLDER = "checkpoint"  # among the run's artifacts
UPLOAD_PATIENCE_SECONDS = 60.0  # with a copy under way when the run is over


def uploaded_names(client: MlflowClient, run_id: str) -> list[str]:
    """Names of the copies, newest epoch first: a copy that was cut short may stand before a whole one."""
    found = [PurePosixPath(item.path).name for item in client.list_artifacts(run_id, UPLOAD_FOLDER)]
    return sorted((name for name in found if name.endswith(".checkpoint")), reverse=True)


def fetch_uploads(client: MlflowClient, run_id: str, name: str, folder: Path) -> Path:
    """Bring a copy into a folder."""
    make_private(folder)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        brought = client.download_artifacts(run_id, f"{UPLOAD_FOLDER}/{name}", temporary)
        return Path(brought).replace(folder / name)


def remove_uploads(client: MlflowClient, run_id: str, *, but: str | None = None) -> None:
    """Remove the copies, as far as the artifact store lets them be removed."""
    with suppress(Exception):  # some stores cannot, and some users may not
        store = get_artifact_repository(client.get_run(run_id).info.artifact_uri)
        for name in uploaded_names(client, run_id):
            if name != but:
                store.delete_artifacts(f"{UPLOAD_FOLDER}/{name}")  # type: ignore[no-untyped-call]
        if but is None:
            store.delete_artifacts(UPLOAD_FOLDER)  # type: ignore[no-untyped-call]


class CheckpointUploader:
    """Sends checkpoints beside the training, at most every so many minutes.

    Args:
        minutes: None never sends.
        warn: takes a line, once, where sending fails.
    """

    def __init__(self, run_id: str, *, minutes: float | None, warn: Callable[[str], None]) -> None:
        self._client = MlflowClient()
        self._run_id = run_id
        self._minutes = minutes
        self._warn = warn
        self._sent: str | None = None
        self._began = time.monotonic()
        self._thread: threading.Thread | None = None

    def offer(self, file: Path) -> None:
        """Send a checkpoint if it is time and none is under way."""
        due = self._minutes is not None and time.monotonic() - self._began >= 60 * self._minutes
        if due and not (self._thread and self._thread.is_alive()):
            self._start(file)

    def send_last(self, file: Path, *, seconds: float) -> None:
        """Send the checkpoint of a run that is asked to stop, as far as that goes in so many seconds."""
        if self._minutes is not None and self._sent != file.name:
            self._wait(seconds / 2)
            self._start(file)
            self._wait(seconds / 2)

    def clear(self) -> None:
        """Remove what was sent."""
        if self._thread:
            self._wait(UPLOAD_PATIENCE_SECONDS)
        remove_uploads(self._client, self._run_id)

    def _wait(self, seconds: float) -> None:
        if self._thread:
            self._thread.join(seconds)

    def _start(self, file: Path) -> None:
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._send, args=(file,), name="checkpoint", daemon=True)
        self._thread.start()

    def _send(self, file: Path) -> None:
        try:
            with tempfile.TemporaryDirectory(dir=file.parent, suffix=".sending") as folder:
                held = Path(folder) / file.name  # a second name, as the first goes when there are newer ones
                os.link(file, held)
                self._client.log_artifact(self._run_id, str(held), UPLOAD_FOLDER)
            self._sent = file.name
            remove_uploads(self._client, self._run_id, but=file.name)
        except Exception as error:  # noqa: BLE001 - whatever the store's client raises, training goes on
            self._warn(f"the checkpoint could not be copied to the run's artifacts: {type(error).__name__}: {error}")


LAST_SECONDS = 3.0  # for the copy of a run that is asked to stop: a spot machine takes its disk with it

log = logging.getLogger(__name__)


def checkpoint_folder(run_id: str) -> Path:
    """Where the checkpoints of a run lie on this machine, if it has any here."""
    return cache_folder("checkpoints", run_id)


class CheckpointManager:
    """Keeps what a run can go on from. What fails here costs no more than a warning."""

    def __init__(self, run_id: str, config: TrainingConfig, *, data: str) -> None:
        self._run_id = run_id
        self._settings = config.model_dump(mode="json")
        self._data = data
        self._folder = checkpoint_folder(run_id)
        self._warned: set[str] = set()
        self._copies = CheckpointUploader(run_id, minutes=config.checkpoint_minutes, warn=self._warn)
        for left in self._folder.glob("*.sending"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)

    def save(self, state: TrainingState) -> None:
        """Keep a state beside the one before."""
        try:
            path = checkpoint.write_checkpoint(
                self._folder, Checkpoint(self._run_id, self._settings, self._data, state)
            )
        except OSError as error:
            reason = error.strerror or error  # without the name of the file, which is new each time
            self._warn(f"the checkpoint could not be written: {reason}; the run can go on from the one before, if any")
        else:
            self._copies.offer(path)

    def newest(self) -> Path | None:
        """The newest that lies on this machine."""
        return next(iter(checkpoint.checkpoint_files(self._folder)), None)

    def upload_final(self) -> None:
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
            log.warning("%s", printable(line))


def remove_finished() -> None:
    """Remove what lies on this machine, and among the artifacts, of such runs of the present tracking store."""
    client = MlflowClient()
    root = cache_folder("checkpoints")
    for folder in root.iterdir() if root.is_dir() else ():
        with suppress(MlflowException):  # a run of another store, or the server is away
            if client.get_run(folder.name).info.status == "FINISHED":
                remove_uploads(client, folder.name)
                shutil.rmtree(folder, ignore_errors=True)
