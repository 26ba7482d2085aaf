"""Files: the user's private cache folder, locks, atomic writes, digests and temporary directories."""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import printable

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
ROOM_BYTES = 1 << 20  # of which a disk without is called full: figures and traced functions take less

log = logging.getLogger(__name__)


def cache_folder(*parts: str) -> Path:
    """Return the path of a folder below `$XDG_CACHE_HOME/convmixer`, by default `~/.cache/convmixer`.

    The folder is not created. A relative `$XDG_CACHE_HOME` is ignored (XDG Base Directory Specification).
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return root.joinpath("convmixer", *parts)


def private_folder(*parts: str) -> Path:
    """Return `cache_folder(*parts)` after creating it, for this user alone.

    Raises:
        OSError: it cannot be created.
    """
    return make_private(cache_folder(*parts))


def make_private(folder: Path) -> Path:
    """Create a folder, and the missing ones above it, for this user alone, and return it.

    Raises:
        OSError: it cannot be created.
    """
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        # with parents=True the folders above it would be open to all
        missing.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextmanager
def lock(file: Path) -> Iterator[None]:
    """Context manager: hold the lock of a file, waiting until no other process does.

    The file is created if it is missing. The kernel releases the lock when the process ends.

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
def try_lock(file: Path, *, remove: bool = False) -> Iterator[bool]:
    """Context manager: hold the lock of a file and yield True, or yield False at once if another process holds it.

    Args:
        file: is created if it is missing.
        remove: whether to remove the file at the end, while the lock is held.

    Raises:
        OSError: the file cannot be created, or its file system has no locks.
    """
    descriptor = _open_locked(file)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        if remove:
            with suppress(OSError):
                file.unlink()
        os.close(descriptor)


def _open_locked(file: Path) -> int | None:
    """Open a file and take its lock; return None if another process holds it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # its last holder may have removed it between the two calls, and another process locked a new one
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file, readable by this user alone, completely or not at all, so that it survives a power cut.

    Raises:
        OSError: it could not be written, for example as the disk is full; the previous file is unchanged.
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
    """Flush a file, or the entries of a folder, to the disk, so that it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_cache_writable() -> None:
    """Raise UsageError if no file can be written to the cache; warn if its disk is full.

    A run can do without the room: it keeps its images and its records in memory then, and no checkpoints.
    """
    try:
        _check_room(private_folder())
    except OSError as error:
        if error.errno in DISK_FULL:
            log.warning("the disk of the cache is full, so no checkpoints are kept: %s", printable(cache_folder()))
            return
        raise UsageError(
            f"the cache must be writable, as checkpoints go there: {cache_folder()}: {error.strerror}; "
            "make it so, or name another folder in XDG_CACHE_HOME"
        ) from None


def _check_room(folder: Path) -> None:
    """Raise OSError if a folder has no room for a small file."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(ROOM_BYTES))
        file.flush()


def sha256_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 digest, in hexadecimal, of each file below a folder, by its path within it."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def changed_files(folder: Path, kept: Mapping[str, str]) -> list[str]:
    """Return the names of those files that are missing now or have another digest than `kept` says."""
    here = sha256_files(folder)
    return [name for name, digest in kept.items() if here.get(name) != digest]


def list_files(path: Path) -> list[Path]:
    """Return all files in a folder and below it, in their order; or the file itself."""
    return sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]


def sha256_file(path: Path) -> str:
    """Return the SHA-256 digest of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


TEMPORARY_LOCK = ".lock"
NEW = "new-"  # prefix of a directory whose lock is not held yet


@contextmanager
def temporary_directory(kind: str) -> Iterator[Path]:
    """Context manager: create a directory in the cache, and remove those that killed processes have left.

    Where the cache has no room, the directory is created in the system's temporary folder, with a warning.

    Raises:
        OSError: there is no room anywhere.
    """
    try:
        home = private_folder(kind)
        _check_room(home)
    except OSError as error:
        with _system_directory(cache_folder(kind), error) as folder:
            yield folder
        return
    for leftover in home.iterdir():
        with suppress(OSError):
            _remove_unless_locked(leftover)
    made = Path(tempfile.mkdtemp(dir=home, prefix=NEW))
    with ExitStack() as stack:
        # without locks, nothing that another process has made is removed
        with suppress(OSError):
            stack.enter_context(try_lock(made / TEMPORARY_LOCK))
        folder = made.rename(home / made.name.removeprefix(NEW))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def temporary_files(kind: str) -> Iterator[None]:
    """Context manager: put temporary files into such a directory; TensorFlow writes one for each traced function."""
    before = tempfile.tempdir
    with temporary_directory(kind) as folder:
        tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            replaced, tempfile.tempdir = tempfile.tempdir, before
            if replaced != str(folder):
                shutil.rmtree(replaced, ignore_errors=True)


def renew_temporary_files() -> None:
    """Create the directory of temporary files again if it has been removed; use another one if its disk is full now.

    To be called now and then while `temporary_files` is in effect.

    Raises:
        OSError: there is no room anywhere.
    """
    if tempfile.tempdir is None:
        return
    folder = Path(os.fsdecode(tempfile.tempdir))
    try:
        _check_room(make_private(folder))
    except OSError as error:
        tempfile.tempdir = None
        tempfile.tempdir = str(_make_system_directory(folder, error))


@contextmanager
def _system_directory(instead_of: Path, error: OSError) -> Iterator[Path]:
    folder = _make_system_directory(instead_of, error)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_system_directory(instead_of: Path, error: OSError) -> Path:
    """Create a directory in the system's temporary folder, and say why."""
    folder = Path(tempfile.mkdtemp(prefix="convmixer-"))
    log.warning("temporary files go to %s, not to %s: %s", folder, printable(instead_of), error.strerror)
    return folder


def _remove_unless_locked(folder: Path) -> None:
    if not folder.name.startswith(NEW):
        with try_lock(folder / TEMPORARY_LOCK) as locked:
            if locked:
                shutil.rmtree(folder, ignore_errors=True)
