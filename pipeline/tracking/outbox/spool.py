"""The spool: the records of one run on this machine's disk, a file each, private, in order, sent by one process."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.runtime.files import cache_folder, fsync_path, make_private, try_lock, write_atomic
from pipeline.tracking.outbox.records import FileRecord, FileWriter, Record, from_json

FOLDER = "outbox"
ABOUT = "about.json"  # the tracking server that the records are for
LOCK = "lock"


class Figure(Protocol):
    """What can be saved as a picture; matplotlib's figures can."""

    def savefig(self, path: Path, /) -> object:
        """Write the picture in the format that the name of the file ends with."""


def write_text(path: str, content: str) -> FileWriter:
    """Return a writer of a text file, in UTF-8."""

    def write(folder: Path) -> None:
        _make_parent(folder / path).write_text(content, encoding="utf-8")

    return write


def copy_file(path: str, source: Path) -> FileWriter:
    """Return a writer of a copy of a file, as it is at that time."""

    def write(folder: Path) -> None:
        shutil.copyfile(source, _make_parent(folder / path))

    return write


def save_figure(path: str, figure: Figure) -> FileWriter:
    """Return a writer of a picture, in the format that its name ends with."""

    def write(folder: Path) -> None:
        figure.savefig(_make_parent(folder / path))

    return write


def _make_parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def spool_folders() -> list[Path]:
    """Return the folders of the runs that have records on this machine."""
    root = cache_folder(FOLDER)
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


@dataclass
class SpooledRecord:
    """A record and where it is kept."""

    record: Record
    path: Path | None  # None: in memory alone


class Spool:
    """The records of a run that no server has yet; each is written whole or not at all, and survives a power cut."""

    def __init__(self, run_id: str, *, destination: str = "") -> None:
        """Open the spool of a run.

        Args:
            run_id: The run.
            destination: The URI of the tracking server, without a password; it is kept with the first record.
        """
        self.folder = cache_folder(FOLDER, run_id)
        self._destination = destination
        self._next = 1 + max((int(path.stem) for path in self._paths()), default=0)

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the right to send these records and yield True, or yield False if another process has it."""
        with ExitStack() as stack:
            try:
                is_mine = stack.enter_context(try_lock(make_private(self.folder) / LOCK))
            except OSError:
                # a full disk: then no other process can keep records here either
                is_mine = True
            yield is_mine
            if is_mine and not self._paths():
                shutil.rmtree(self.folder, ignore_errors=True)

    def destination(self) -> str:
        """Return the URI of the tracking server that the records are for."""
        try:
            return str(json.loads((self.folder / ABOUT).read_text())["tracking_uri"])
        except (OSError, ValueError, KeyError):
            return ""

    def pending(self) -> list[SpooledRecord]:
        """Return the records on the disk, the oldest first; whether an attempt to send one succeeded is not known."""
        found = []
        for path in self._paths():
            # another program's file, or one that another process has just removed
            with suppress(ValueError, OSError):
                record = from_json(json.loads(path.read_text())).as_retried()
                if isinstance(record, FileRecord):
                    record = record.in_folder(path.with_suffix(".files"))
                found.append(SpooledRecord(record, path))
        return found

    def put(self, record: Record) -> SpooledRecord:
        """Keep a record on the disk, or in memory where the disk is full, its files then in the temporary folder.

        Raises:
            OSError: There is no place anywhere for its files.
        """
        path = self.folder / f"{self._next:06d}.json"
        self._next += 1
        if isinstance(record, FileRecord) and record.write:
            record = record.in_folder(self._write_files(path.with_suffix(".files"), record.write))
        with suppress(OSError):
            self._prepare()
            write_atomic(path, json.dumps(record.to_json()).encode())
            return SpooledRecord(record, path)
        return SpooledRecord(record, None)

    def remove(self, spooled: SpooledRecord) -> None:
        """Remove a record that the server has, and its files."""
        if spooled.path:
            spooled.path.unlink(missing_ok=True)
        if isinstance(spooled.record, FileRecord) and spooled.record.folder:
            shutil.rmtree(spooled.record.folder, ignore_errors=True)

    def _prepare(self) -> None:
        make_private(self.folder)
        if not (self.folder / ABOUT).exists():
            write_atomic(self.folder / ABOUT, json.dumps({"tracking_uri": self._destination}).encode())

    def _write_files(self, folder: Path, write: FileWriter) -> Path:
        # what a kill during an earlier write has left
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            self._prepare()
            folder.mkdir(mode=0o700)
            return _fill(folder, write)
        return _fill(Path(tempfile.mkdtemp()), write)

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.json") if path.stem.isdecimal())


def _fill(folder: Path, write: FileWriter) -> Path:
    """Write files that survive a power cut, or none, into a folder and return it."""
    try:
        write(folder)
        for path in folder.rglob("*"):
            fsync_path(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder
