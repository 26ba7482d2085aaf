"""The records of one run on this machine, a file each, in order; private, and held by one process at a time."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.runtime.files import cache_folder, fsync_path, make_private, try_lock, write_atomic
from pipeline.tracking.outbox.records import FileWriter, Kind, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_text(path: str, content: str) -> FileWriter:
    """A file of text, in UTF-8."""

    def fill(folder: Path) -> None:
        _place(folder, path).write_text(content, encoding="utf-8")

    return fill


def copy_file(path: str, source: Path) -> FileWriter:
    """A file as another one is now."""

    def fill(folder: Path) -> None:
        shutil.copyfile(source, _place(folder, path))

    return fill


def save_figure(path: str, drawn: "Figure") -> FileWriter:
    """A picture, in the format that its name ends with."""
    return lambda folder: drawn.savefig(_place(folder, path))


def _place(folder: Path, path: str) -> Path:
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


FOLDER = "outbox"
ABOUT = "about.json"  # to which tracking server the records go
LOCK = "lock"


def spool_folders() -> list[Path]:
    """Where runs have left records on this machine."""
    root = cache_folder(FOLDER)
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


class Spool:
    """The records of a run that no server has yet. They are written whole or not at all, and survive a power cut."""

    def __init__(self, run_id: str, *, to: str = "") -> None:
        """`to`: the tracking server's URI, without a password; it is kept with the first record."""
        self.folder = cache_folder(FOLDER, run_id)
        self._to = to
        self._next = 1 + max((int(path.stem) for path in self._paths()), default=0)

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Within it no other process sends these records; False where one does already."""
        with ExitStack() as stack:
            try:
                mine = stack.enter_context(try_lock(make_private(self.folder) / LOCK))
            except OSError:  # a full disk: then nobody else can keep anything here either
                mine = True
            yield mine
            if mine and not self._paths():
                shutil.rmtree(self.folder, ignore_errors=True)

    def goes_to(self) -> str:
        """The server for which the records are kept."""
        try:
            return str(json.loads((self.folder / ABOUT).read_text())["tracking_uri"])
        except (OSError, ValueError, KeyError):
            return ""

    def waiting(self) -> list[Record]:
        """The records that were left, the oldest first; whether they had arrived nobody knows."""
        found = []
        for path in self._paths():
            with suppress(ValueError, OSError):  # no record of ours
                said = json.loads(path.read_text())
                files = path.with_suffix(".files")
                found.append(
                    Record(
                        said["kind"], said["run_id"], said["body"], files if files.is_dir() else None, path, tried=True
                    )
                )
        return found

    def put(self, kind: Kind, run_id: str, body: Mapping[str, Any], fill: FileWriter | None) -> Record:
        """Keep a record; in memory where the disk takes none, its files then in the system's temporary folder.

        Raises:
            OSError: files find no place anywhere.
        """
        path = self.folder / f"{self._next:06d}.json"
        self._next += 1
        files = self._files(path.with_suffix(".files"), fill) if fill else None
        record = Record(kind, run_id, body, files)
        with suppress(OSError):
            self._prepare()
            write_atomic(path, json.dumps({"kind": kind, "run_id": run_id, "body": body}).encode())
            record.path = path
        return record

    def drop(self, record: Record) -> None:
        """Forget a record, which the server has."""
        if record.path:
            record.path.unlink(missing_ok=True)
        if record.files:
            shutil.rmtree(record.files, ignore_errors=True)

    def _prepare(self) -> None:
        make_private(self.folder)
        if not (self.folder / ABOUT).exists():
            write_atomic(self.folder / ABOUT, json.dumps({"tracking_uri": self._to}).encode())

    def _files(self, folder: Path, fill: FileWriter) -> Path:
        shutil.rmtree(folder, ignore_errors=True)  # which a kill in mid-write left
        with suppress(OSError):
            self._prepare()
            folder.mkdir(mode=0o700)
            return _filled(folder, fill)
        return _filled(Path(tempfile.mkdtemp()), fill)

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.json") if path.stem.isdecimal())


def _filled(folder: Path, fill: FileWriter) -> Path:
    try:
        fill(folder)
        for path in folder.rglob("*"):
            fsync_path(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder
