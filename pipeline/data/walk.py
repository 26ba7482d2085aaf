"""Image files below a folder, recognized by their suffixes, and a count of what is passed over."""

import os
import re
import stat
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import join_names, printable

# Those of the formats of decode.py; the content decides which of them a file has.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi"),
    *(".png", ".apng", ".tif", ".tiff", ".gif", ".webp", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm"),
)
# Some sites serve, and browsers then save, a picture as x.jpg_large or x.jpg:orig.
IMAGE_SUFFIX = re.compile(
    rf"({'|'.join(map(re.escape, SUFFIXES))})([_:-](large|medium|small|thumb|orig))?", re.IGNORECASE
)
# What file managers and operating systems leave behind, beside hidden files.
CLUTTER = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found"),
        *("$recycle.bin", "system volume information"),
    )
)
MAX_SUFFIX_CHARACTERS = 20  # in a message


class FoundFile(NamedTuple):
    """A file that has an image's suffix."""

    path: str
    status: os.stat_result


def walk_images(folder: str | Path, passed_over: Counter[str]) -> Iterator[FoundFile]:
    """Yield the image files below a folder, at any depth and through links; count the others by suffix.

    Hidden files and folders and CLUTTER are left out of both. A folder that is reached in several ways is entered once:
    by its own path if that lies below the folder, else by the first link to it, in the order of depth and name. So the
    files have the same paths on every machine, in whatever order its file system lists them.

    Raises:
        UsageError: A folder cannot be read.
    """
    folders = deque([(os.fspath(folder), _identity(os.stat(folder)))])
    links: deque[tuple[str, tuple[int, int]]] = deque()
    seen: set[tuple[int, int]] = set()
    while folders or links:
        # links come last, as one may lead to a folder that is found later
        path, identity = (folders or links).popleft()
        if identity in seen:
            continue
        seen.add(identity)
        for entry in sorted(list_entries(path), key=lambda entry: os.fsencode(entry.name)):
            status = _get_status(entry)
            if stat.S_ISDIR(status.st_mode):
                (links if entry.is_symlink() else folders).append((entry.path, _identity(status)))
            elif stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                if is_image_name(entry.name):
                    yield FoundFile(entry.path, status)
                else:
                    passed_over[_suffix(entry.name)] += 1


def list_subfolders(folder: Path) -> dict[str, Path]:
    """Return the visible folders directly in a folder by name, in the order of names."""
    names = sorted((entry.name for entry in list_entries(folder) if _is_folder(entry)), key=os.fsencode)
    return {name: folder / name for name in names}


def count_images(folder: str | Path) -> int:
    """Return the number of image files directly in a folder."""
    return sum(is_image_name(entry.name) and not _is_folder(entry) for entry in list_entries(folder))


def is_image_name(name: str) -> bool:
    """Return whether a file of this name should be an image, in any case of letters."""
    return IMAGE_SUFFIX.fullmatch(os.path.splitext(name)[1]) is not None


def describe_passed_over(passed_over: Counter[str]) -> str:
    """Return how many files were passed over, by suffix, the most frequent first: `3 files (2 .heic, 1 .txt)`."""
    total = passed_over.total()
    kinds = join_names([f"{number:,} {suffix}" for suffix, number in passed_over.most_common()])
    return f"{total:,} file{'' if total == 1 else 's'} ({kinds})"


def list_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder that are neither hidden nor CLUTTER.

    Raises:
        UsageError: The folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not _is_hidden(entry.name)]
    except OSError as error:
        raise UsageError(f"every folder must be readable: {printable(folder)}: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # The status of a file that is no link is not needed, and takes a call of the system.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and stat.S_ISDIR(_get_status(entry).st_mode))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in CLUTTER


def _suffix(name: str) -> str:
    return printable(os.path.splitext(name)[1].lower())[:MAX_SUFFIX_CHARACTERS] or "without a suffix"


def _get_status(entry: os.DirEntry[str]) -> os.stat_result:
    """Return the status of an entry, or of the link itself if its target is missing: opening it will say why."""
    try:
        return entry.stat()
    except OSError:
        pass
    try:
        return entry.stat(follow_symlinks=False)
    except OSError as error:
        raise UsageError(f"files must stay while they are read: {entry.path}: {error.strerror}") from error


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
