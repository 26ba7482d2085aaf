"""The spool: the records of one run on this machine's disk, a file each, private, in order, sent by one process.

What can never be sent is set aside in a folder of its own, so that it does not stand in the way of what follows.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol

from pipeline.runtime.files import (
    cache_folder,
    fsync_path,
    make_private,
    renew_temporary_files,
    try_lock,
    write_atomic,
)
from pipeline.runtime.process import ProcessIdentity, liveness, this_process
from pipeline.runtime.text import one_line
from pipeline.tracking.outbox.records import FileRecord, FileWriter, Record, from_json

FOLDER = "outbox"
SET_ASIDE_FOLDER = "outbox-set-aside"
ABOUT = "about.json"  # the tracking server that the records are for
LOCK = "lock"
LOCK_PAUSE_SECONDS = 0.2  # between two attempts
FILES_SUFFIX = ".files"  # of the folder of a record's files
REASON_SUFFIX = ".txt"  # of the file that says why a record was set aside


class Figure(Protocol):
    """What can be saved as a picture; matplotlib's figures can."""

    def savefig(self, path: Path | BytesIO, /, *, format: str = ..., pil_kwargs: dict[str, int] = ...) -> object:
        """Write the picture in the format that the name of the file ends with, or in `format`."""


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


def save_figure(paths: Sequence[str], figure: Figure) -> FileWriter:
    """Return a writer of a picture under one or more paths, each in the format that its name ends with."""

    def write(folder: Path) -> None:
        for path in paths:
            figure.savefig(_make_parent(folder / path))

    return write


def _make_parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def spool_folders() -> list[Path]:
    """Return the folders of the runs that have records on this machine."""
    return _folders(FOLDER)


def set_aside_folders() -> list[Path]:
    """Return the folders of the runs of which records have been set aside on this machine."""
    return _folders(SET_ASIDE_FOLDER)


def _folders(name: str) -> list[Path]:
    root = cache_folder(name)
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def record_files(folder: Path) -> list[Path]:
    """Return the files of the records in a folder, the oldest first."""
    return sorted(path for path in folder.glob("*.json") if path.stem.isdecimal())


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
        self.set_aside_folder = cache_folder(SET_ASIDE_FOLDER, run_id)
        self.refusals: list[str] = []  # why records have been set aside
        self._destination = destination
        self._next = _next_number(self.folder)

    @contextmanager
    def lock(self, *, seconds: float = 0.0) -> Iterator[bool]:
        """Hold the right to send these records and yield True, or yield False if another process has it.

        Args:
            seconds: How long to wait for the other process.
        """
        until = time.monotonic() + seconds
        with ExitStack() as stack:
            while not (is_mine := self._try_lock(stack)) and time.monotonic() < until:
                time.sleep(LOCK_PAUSE_SECONDS)
            yield is_mine
            if is_mine and not record_files(self.folder):
                shutil.rmtree(self.folder, ignore_errors=True)

    def _try_lock(self, stack: ExitStack) -> bool:
        try:
            return stack.enter_context(try_lock(make_private(self.folder) / LOCK))
        except OSError:
            # a file system without locks, or a full disk, where no other process can keep records either
            return stack.enter_context(self._try_own())

    @contextmanager
    def _try_own(self) -> Iterator[bool]:
        """Name this process in the file that cannot be locked and yield True, or False if it names a live one."""
        file, owner = self.folder / LOCK, None
        with suppress(OSError, ValueError, TypeError):
            owner = ProcessIdentity.from_tags(json.loads(file.read_text()))
        if owner and liveness(owner) == "alive":
            yield False
            return
        with suppress(OSError):
            file.write_text(json.dumps(this_process().tags()))
        try:
            yield True
        finally:
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def destination(self) -> str:
        """Return the URI of the tracking server that the records are for; empty if that is not known."""
        try:
            return str(json.loads((self.folder / ABOUT).read_text())["tracking_uri"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return ""

    def pending(self) -> list[SpooledRecord]:
        """Return the records on the disk, the oldest first, and set aside what is none; the lock must be held.

        Whether an attempt to send a record has succeeded is not known.
        """
        found = []
        for path in record_files(self.folder):
            try:
                found.append(SpooledRecord(_read(path), path))
            except (OSError, ValueError, RecursionError) as error:
                self._set_aside(path, path.with_suffix(FILES_SUFFIX), one_line(error))
        return found

    def set_aside(self, spooled: SpooledRecord, reason: str) -> None:
        """Move a record that can never be sent, and its files, to where they are kept and in nobody's way."""
        folder = spooled.record.folder if isinstance(spooled.record, FileRecord) else None
        self._set_aside(spooled.path, folder, reason)

    def _set_aside(self, path: Path | None, files: Path | None, reason: str) -> None:
        self.refusals.append(reason)
        # where nothing can be moved, the record is set aside at the next attempt
        with suppress(OSError):
            to = make_private(self.set_aside_folder) / f"{_next_number(self.set_aside_folder):06d}.json"
            if path:
                os.replace(path, to)
            with suppress(OSError):
                to.with_suffix(REASON_SUFFIX).write_text(reason + "\n", encoding="utf-8")
                shutil.copyfile(self.folder / ABOUT, self.set_aside_folder / ABOUT)
            if files and files.exists():
                shutil.move(files, to.with_suffix(FILES_SUFFIX))

    def take_back(self) -> int:
        """Put the records that were set aside behind those that are pending; the lock must be held.

        Returns:
            How many there were.

        Raises:
            OSError: One of them could not be moved.
        """
        count = self.take_in(self.set_aside_folder)
        shutil.rmtree(self.set_aside_folder, ignore_errors=True)
        return count

    def take_in(self, folder: Path) -> int:
        """Put the records of another folder on this disk behind those that are pending, under numbers of their own.

        Returns:
            How many there were.

        Raises:
            OSError: One of them could not be moved.
        """
        if not record_files(self.folder):
            make_private(self.folder)
            with suppress(OSError):
                shutil.copyfile(folder / ABOUT, self.folder / ABOUT)
        self._next = max(self._next, _next_number(self.folder))
        paths = record_files(folder)
        for path in paths:
            to = self.folder / f"{self._next:06d}.json"
            self._next += 1
            # first the files, as a record without them could not be sent
            if path.with_suffix(FILES_SUFFIX).exists():
                os.replace(path.with_suffix(FILES_SUFFIX), to.with_suffix(FILES_SUFFIX))
            os.replace(path, to)
        return len(paths)

    def put(self, record: Record) -> SpooledRecord:
        """Keep a record on the disk, or in memory where the disk is full, its files then in the temporary folder.

        Raises:
            OSError: There is no place anywhere for its files.
        """
        path = self.folder / f"{self._next:06d}.json"
        self._next += 1
        if isinstance(record, FileRecord) and record.write:
            record = record.with_files(self._write_files(path.with_suffix(FILES_SUFFIX), record.write))
        with suppress(OSError):
            self._prepare()
            write_atomic(path, json.dumps(record.to_json()).encode())
            return SpooledRecord(record, path)
        return SpooledRecord(record, None)

    def remove(self, spooled: SpooledRecord) -> None:
        """Remove a record that the server has, and its files; one that stays is sent again, and logged once."""
        if spooled.path:
            with suppress(OSError):
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
        # in memory, or on another disk than the cache, which may be full
        renew_temporary_files()
        return _fill(Path(tempfile.mkdtemp()), write)


def _read(path: Path) -> Record:
    """Return the record in a file, with its files.

    Raises:
        OSError: It cannot be read, or its files are gone.
        ValueError: It is no record of this version.
        RecursionError: It is no record, but lists in lists.
    """
    record = from_json(json.loads(path.read_bytes())).as_retried()
    if isinstance(record, FileRecord):
        record = record.in_folder(path.with_suffix(FILES_SUFFIX))
        record.complete_folder()
    return record


def _next_number(folder: Path) -> int:
    """Return a number that neither a record nor files without one have, as a kill leaves them."""
    return 1 + max((int(path.stem) for path in folder.glob("*.*") if path.stem.isdecimal()), default=0)


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
