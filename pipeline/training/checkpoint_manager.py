"""The checkpoints of a run: saved on this machine after each epoch, uploaded to the run's artifacts now and then."""

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from pipeline.config.training import TrainingConfig
from pipeline.runtime.errors import TrackingError
from pipeline.runtime.files import cache_folder, make_private
from pipeline.runtime.text import printable
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.tags import Role, Tag
from pipeline.training.checkpoint import Checkpoint, TrainingState, checkpoint_files, write_checkpoint

log = logging.getLogger(__name__)

UPLOAD_FOLDER = "checkpoint"  # among the run's artifacts
UPLOAD_PATIENCE_SECONDS = 60.0  # wait for a running upload when the run has finished
# Upload of a run that is asked to stop: a spot machine takes its disk with it.
FINAL_UPLOAD_SECONDS = 3.0


class CheckpointManager:
    """Save what a run can be resumed from. A failure to save or upload costs a warning, not the run.

    Args:
        run_id: The run.
        config: Its settings, `checkpoint_minutes` among them.
        fingerprint: Of its data set.
    """

    def __init__(self, run_id: str, config: TrainingConfig, *, fingerprint: str) -> None:
        self._run_id = run_id
        self._settings = config.model_dump(mode="json")
        self._fingerprint = fingerprint
        self._folder = checkpoint_folder(run_id)
        self._warned: set[str] = set()
        self._uploader = CheckpointUploader(run_id, minutes=config.checkpoint_minutes, warn=self._warn)
        # left by a process that was killed during an upload
        for abandoned in self._folder.glob("*.sending"):
            shutil.rmtree(abandoned, ignore_errors=True)

    def save(self, state: TrainingState) -> None:
        """Save a state on this machine, and upload it if that is due."""
        checkpoint = Checkpoint(self._run_id, self._settings, self._fingerprint, state)
        try:
            path = write_checkpoint(self._folder, checkpoint)
        except (OSError, MemoryError) as error:
            # strerror, as the message of the error has the file's name, which is new each time
            reason = getattr(error, "strerror", None) or error
            self._warn(f"the checkpoint could not be written: {reason}; the run can be resumed from the one before")
        else:
            self._uploader.offer(path)

    def newest(self) -> Path | None:
        """Return the newest checkpoint file on this machine, or None."""
        return next(iter(checkpoint_files(self._folder)), None)

    def upload_final(self) -> None:
        """Upload the newest checkpoint of a run that is asked to stop, as far as a short time allows."""
        if path := self.newest():
            self._uploader.upload_final(path, seconds=FINAL_UPLOAD_SECONDS)
        else:
            shutil.rmtree(self._folder, ignore_errors=True)

    def clear(self) -> None:
        """Remove all checkpoints of the run, here and among its artifacts."""
        self._uploader.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _warn(self, message: str) -> None:
        """Log a warning the first time it occurs."""
        if message not in self._warned:
            self._warned.add(message)
            log.warning("%s", printable(message))


class CheckpointUploader:
    """Upload checkpoints to a run's artifacts in a thread, at most once in a number of minutes.

    Args:
        run_id: The run.
        minutes: None uploads nothing.
        warn: Takes a message when an upload fails.
    """

    def __init__(self, run_id: str, *, minutes: float | None, warn: Callable[[str], None]) -> None:
        self._client = TrackingClient()
        self._run_id = run_id
        self._minutes = minutes
        self._warn = warn
        self._uploaded: str | None = None
        self._last_start = time.monotonic()
        self._thread: threading.Thread | None = None

    def offer(self, file: Path) -> None:
        """Upload a checkpoint if it is due and no other upload is running."""
        due = self._minutes is not None and time.monotonic() - self._last_start >= 60 * self._minutes
        if due and not (self._thread and self._thread.is_alive()):
            self._start(file)

    def upload_final(self, file: Path, *, seconds: float) -> None:
        """Upload a checkpoint unless it has been uploaded, and wait at most `seconds`."""
        if self._minutes is not None and self._uploaded != file.name:
            self.wait(seconds / 2)
            self._start(file)
            self.wait(seconds / 2)

    def clear(self) -> None:
        """Remove what has been uploaded."""
        self.wait(UPLOAD_PATIENCE_SECONDS)
        remove_uploads(self._client, self._run_id)

    def wait(self, seconds: float) -> None:
        """Wait at most `seconds` for the running upload, if there is one."""
        if self._thread:
            self._thread.join(seconds)

    def _start(self, file: Path) -> None:
        self._last_start = time.monotonic()
        self._thread = threading.Thread(target=self._upload, args=(file,), name="checkpoint", daemon=True)
        self._thread.start()

    def _upload(self, file: Path) -> None:
        try:
            with tempfile.TemporaryDirectory(dir=file.parent, suffix=".sending") as folder:
                # a hard link of its own, since the file is removed once there are newer ones
                link = Path(folder) / file.name
                os.link(file, link)
                self._client.upload_artifact(self._run_id, link, UPLOAD_FOLDER)
            self._uploaded = file.name
            remove_uploads(self._client, self._run_id, except_for=file.name)
        except Exception as error:  # noqa: BLE001 - whatever the store's client raises, training goes on
            self._warn(f"the checkpoint could not be copied to the run's artifacts: {type(error).__name__}: {error}")


def checkpoint_folder(run_id: str) -> Path:
    """Return the folder of a run's checkpoints on this machine, which exists if the run has trained here."""
    return cache_folder("checkpoints", run_id)


def uploaded_checkpoints(client: TrackingClient, run_id: str) -> list[str]:
    """Return the names of a run's uploaded checkpoints, newest epoch first.

    There may be several: an upload that was interrupted may be newer than a complete one.
    """
    names = [PurePosixPath(path).name for path in client.list_artifacts(run_id, UPLOAD_FOLDER)]
    return sorted((name for name in names if name.endswith(".checkpoint")), reverse=True)


def download_checkpoint(client: TrackingClient, run_id: str, name: str, folder: Path) -> Path:
    """Download an uploaded checkpoint into a folder and return its path."""
    make_private(folder)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        downloaded = client.download_artifact(run_id, f"{UPLOAD_FOLDER}/{name}", Path(temporary))
        return downloaded.replace(folder / name)


def remove_uploads(client: TrackingClient, run_id: str, *, except_for: str | None = None) -> None:
    """Remove a run's uploaded checkpoints, except one; silently keep them if the artifact store cannot delete."""
    # some stores cannot delete, and some users may not
    with suppress(Exception):
        names = [name for name in uploaded_checkpoints(client, run_id) if name != except_for]
        paths = [f"{UPLOAD_FOLDER}/{name}" for name in names]
        if except_for is None:
            paths.append(UPLOAD_FOLDER)
        client.delete_artifacts(run_id, paths)


def remove_finished() -> None:
    """Remove the checkpoints, here and uploaded, of the finished runs of the current tracking store.

    Those of a fold are needed until the run of all folds has finished.
    """
    client = TrackingClient()
    root = cache_folder("checkpoints")
    for folder in root.iterdir() if root.is_dir() else ():
        # the run belongs to another store, or the server does not answer
        with suppress(TrackingError):
            run = client.get_run(folder.name)
            if run.data.tags.get(Tag.ROLE) == Role.FOLD:
                run = client.get_run(run.data.tags[Tag.PARENT_RUN_ID])
            if run.info.status == "FINISHED":
                remove_uploads(client, folder.name)
                shutil.rmtree(folder, ignore_errors=True)
