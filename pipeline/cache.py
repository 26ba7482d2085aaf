"""Where files live that can be made again: the user's cache folder, which nobody else may look into."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UsageError


def cache_folder(*parts: str) -> Path:
    """Path of a folder (not created) under `$XDG_CACHE_HOME/convmixer`, by default `~/.cache/convmixer`.

    XDG Base Directory Specification: a relative `$XDG_CACHE_HOME` is ignored.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return root.joinpath("convmixer", *parts)


def private_folder(*parts: str) -> Path:
    """`cache_folder`, created; what is new of it is for this user alone.

    Raises:
        OSError: it cannot be.
    """
    return make_private(cache_folder(*parts))


def make_private(folder: Path) -> Path:
    """Create a folder and those above it that are missing, for this user alone; returns it.

    Raises:
        OSError: it cannot be.
    """
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)  # with parents=True these would be open to all
    return folder


@contextmanager
def held(file: Path) -> Iterator[bool]:
    """Within it no other process holds this file, which is made; False where one does. It ends with the process.

    Raises:
        OSError: the file cannot be made.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Put a file, for this user alone, in its place whole or not at all; it survives a power cut.

    Raises:
        OSError: it could not be written, the disk being full, say; what was there before still is.
    """
    temporary = path.with_name(f"{path.name}.part")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    synced(path.parent)


def synced(path: Path) -> None:
    """Have a file, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_unwritable() -> None:
    """Raise UsageError where no file can be written to the cache."""
    try:
        with tempfile.TemporaryFile(dir=private_folder()):
            pass
    except OSError as error:
        raise UsageError(
            f"the cache must be writable, as checkpoints go there: {cache_folder()}: {error.strerror}; "
            "make it so, or name another folder in XDG_CACHE_HOME"
        ) from None
