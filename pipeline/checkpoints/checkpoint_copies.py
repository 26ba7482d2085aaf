"""Copies of a run's checkpoints among its artifacts, from which another machine goes on; the newest only."""

import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pipeline.cache import make_private

FOLDER = "checkpoint"  # among the run's artifacts
PATIENCE_SECONDS = 60.0  # with a copy under way when the run is over


def names(client: MlflowClient, run_id: str) -> list[str]:
    """Names of the copies, newest epoch first: a copy that was cut short may stand before a whole one."""
    found = [PurePosixPath(item.path).name for item in client.list_artifacts(run_id, FOLDER)]
    return sorted((name for name in found if name.endswith(".checkpoint")), reverse=True)


def fetch(client: MlflowClient, run_id: str, name: str, folder: Path) -> Path:
    """Bring a copy into a folder."""
    make_private(folder)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        brought = client.download_artifacts(run_id, f"{FOLDER}/{name}", temporary)
        return Path(brought).replace(folder / name)


def clear(client: MlflowClient, run_id: str, *, but: str | None = None) -> None:
    """Remove the copies, as far as the artifact store lets them be removed."""
    with suppress(Exception):  # some stores cannot, and some users may not
        store = get_artifact_repository(client.get_run(run_id).info.artifact_uri)
        for name in names(client, run_id):
            if name != but:
                store.delete_artifacts(f"{FOLDER}/{name}")  # type: ignore[no-untyped-call]
        if but is None:
            store.delete_artifacts(FOLDER)  # type: ignore[no-untyped-call]


class Copies:
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
            self._wait(PATIENCE_SECONDS)
        clear(self._client, self._run_id)

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
                self._client.log_artifact(self._run_id, str(held), FOLDER)
            self._sent = file.name
            clear(self._client, self._run_id, but=file.name)
        except Exception as error:  # noqa: BLE001 - whatever the store's client raises, training goes on
            self._warn(f"the checkpoint could not be copied to the run's artifacts: {type(error).__name__}: {error}")
