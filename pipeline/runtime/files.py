"""Where files live that can be made again: the user's cache folder, which nobody else may look into."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.runtime.errors import UsageError


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
def lock(file: Path) -> Iterator[None]:
    """Hold the lock of a file, which is created, once no other process holds it; the kernel frees it with the process.

    Raises:
        OSError: the file cannot be created, or its file system has no locks.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def try_lock(file: Path) -> Iterator[bool]:
    """Hold the lock of a file, as `lock` does, and yield True; or yield False at once if another process holds it.

    Raises:
        OSError: the file cannot be created.
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


def write_atomic(path: Path, content: bytes) -> None:
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
    fsync_path(path.parent)


def fsync_path(path: Path) -> None:
    """Have a file, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_cache_writable() -> None:
    """Raise UsageError where no file can be written to the cache."""
    try:
        with tempfile.TemporaryFile(dir=private_folder()):
            pass
    except OSError as error:
        raise UsageError(
            f"the cache must be writable, as checkpoints go there: {cache_folder()}: {error.strerror}; "
            "make it so, or name another folder in XDG_CACHE_HOME"
        ) from None


def sha256_files(folder: Path) -> dict[str, str]:
    """64 hexadecimal digits for each file below a folder, by its path within it."""
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def changed_files(folder: Path, kept: Mapping[str, str]) -> list[str]:
    """Which of the files that have a digest are missing or others now."""
    here = sha256_files(folder)
    return [name for name, digest in kept.items() if here.get(name) != digest]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


TEMPORARY_LOCK = ".lock"
NEW = "new-"  # is not held yet


@contextmanager
def temporary_directory(kind: str) -> Iterator[Path]:
    """A folder of this process's own within the cache; those of its kind whose processes were killed are removed."""
    home = private_folder(kind)
    for left in home.iterdir():
        with suppress(OSError):
            _remove_unless_held(left)
    made = Path(tempfile.mkdtemp(dir=home, prefix=NEW))
    with try_lock(made / TEMPORARY_LOCK):
        folder = made.rename(home / made.name.removeprefix(NEW))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def temporary_files(kind: str) -> Iterator[None]:
    """Within it temporary files lie in such a folder: TensorFlow writes one for each function that it traces."""
    before = tempfile.tempdir
    with temporary_directory(kind) as folder:
        tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before


def _remove_unless_held(folder: Path) -> None:
    if not folder.name.startswith(NEW):
        with try_lock(folder / TEMPORARY_LOCK) as mine:
            if mine:
                shutil.rmtree(folder, ignore_errors=True)
