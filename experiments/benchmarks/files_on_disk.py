"""Runs whose files are written to this machine's disk, as a training writes them, and then forgotten."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.tracking.images import FOLDER
from pipeline.tracking.outbox.outbox import Outbox
from pipeline.tracking.outbox.records import FileRecord, LogFiles, Record
from pipeline.tracking.outbox.spool import Figure, save_figure
from pipeline.tracking.run import TrackedRun


class FilesOnDisk(Outbox):
    """An outbox that writes the files of its records as they come, forgets them, and sends nothing.

    Attributes:
        images: How many images for MLflow's grid there were.
        image_bytes: The size of them and their previews.
    """

    def __init__(self) -> None:
        self.images = self.image_bytes = 0

    def put(self, record: Record) -> None:
        if not isinstance(record, FileRecord):
            return
        assert record.write
        with tempfile.TemporaryDirectory() as folder:
            record.write(Path(folder))
            files = list(Path(folder, FOLDER).glob("*"))
            self.images += len(files) // 2
            self.image_bytes += sum(file.stat().st_size for file in files)


class PlotsOnly(TrackedRun):
    """A run that logs its figures as plots alone, and none for MLflow's image grid."""

    def log_figure(self, path: str, figure: Figure, *, key: str | None = None) -> None:
        super().log_figure(path, figure)

    def log_image(self, key: str, figure: Figure, *, step: int = 0, copies: Sequence[str] = ()) -> None:
        if copies:
            self.outbox.put(LogFiles(self.id, write=save_figure(copies, figure)))
