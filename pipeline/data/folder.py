"""A folder of class folders -> its classes and the image files of each split, without opening them."""

import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from pipeline.data.read_images import SUFFIXES
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import join_names, printable

SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}

log = logging.getLogger(__name__)


class ImageFile(NamedTuple):
    """An image file, with its size and modification time, which tell if it has changed."""

    path: str
    label: int
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class FolderListing:
    """The files of a folder by split, in the order of class and path."""

    root: Path
    classes: tuple[str, ...]
    parts: dict[str, list[ImageFile]]  # by "train", and by "validation" and "test" if the folder has them

    def fingerprint(self) -> str:
        """Return a digest of every file's absolute path, size and modification time."""
        digest = blake2b(digest_size=16)
        for part, files in self.parts.items():
            digest.update(f"\0\0{part}".encode())
            for file in files:
                digest.update(b"\0%s\0%d\0%d" % (os.fsencode(file.path), file.bytes, file.mtime_ns))
        return digest.hexdigest()


def list_folder(root: Path) -> FolderListing:
    """List a folder of class folders, or of train/, val/ (or valid/, validation/) and test/ with class folders.

    A class has all images below its folder, at any depth and through links, in the order of their paths' bytes.
    Hidden files and folders, files with other suffixes, and files beside the class folders are ignored.

    Raises:
        UsageError: The folder has no such structure, or cannot be read.
    """
    folders = {part: _list_subfolders(path) for part, path in _find_splits(root).items()}
    train, classes = folders["train"], list(folders["train"])
    if len(classes) < 2:
        raise UsageError(_describe_too_few_classes(root, train))
    for part, others in folders.items():
        _check_same_classes(root, part, train, others)
    parts = {
        part: [file for label, name in enumerate(classes) for file in _list_class(others[name], label)]
        for part, others in folders.items()
    }
    return FolderListing(root, tuple(printable(name) for name in classes), parts)


def list_images(root: Path) -> list[str]:
    """Return the paths of all images below a folder, at any depth and through links, in the order of their bytes.

    Hidden files and folders and files with other suffixes are ignored.

    Raises:
        UsageError: A folder cannot be read.
    """
    return sorted((file.path for file in _walk_images(root, 0)), key=os.fsencode)


def _find_splits(root: Path) -> dict[str, Path]:
    """Return the folder of each split; the root itself is the training folder if it has class folders.

    A class may be called `train`: its folder then has images, and other classes are beside it.
    """
    folders = _list_subfolders(root)
    splits = {name: SPLIT_FOLDERS[name.lower()] for name in folders if name.lower() in SPLIT_FOLDERS}
    others = sorted(folders.keys() - splits.keys())
    train = next((folders[name] for name, part in splits.items() if part == "train"), None)
    if not splits or (others and (train is None or _has_images(train))):
        return {"train": root}
    if train is None:
        raise UsageError(f"{join_names(splits)} need a train folder beside them: {printable(root)} has none; add it")
    if len(set(splits.values())) < len(splits):
        raise UsageError(
            f"each split has one folder: {printable(root)} has {join_names(splits)}; keep one for each split"
        )
    if others:
        log.warning("%s has a train folder; ignored beside it: %s", printable(root), join_names(others))
    return {part: folders[name] for part in ("train", "validation", "test") for name in splits if splits[name] == part}


def _list_class(folder: str | Path, label: int) -> list[ImageFile]:
    files = sorted(_walk_images(folder, label), key=lambda file: os.fsencode(file.path))
    if not files:
        raise UsageError(
            f"every class needs images ({', '.join(SUFFIXES)}): {printable(folder)} has none; add some or remove it"
        )
    return files


def _walk_images(folder: str | Path, label: int) -> Iterator[ImageFile]:
    """Yield the image files below a folder; a folder that is reached through several links is entered once."""
    pending, seen = [os.fspath(folder)], {_identity(os.stat(folder))}
    while pending:
        for entry in _list_entries(pending.pop()):
            status = _get_status(entry)
            if stat.S_ISDIR(status.st_mode):
                if _identity(status) not in seen:
                    seen.add(_identity(status))
                    pending.append(entry.path)
            elif _is_image(entry) and (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
                yield ImageFile(entry.path, label, status.st_size, status.st_mtime_ns)


def _list_subfolders(folder: Path) -> dict[str, Path]:
    """Return the visible folders directly in a folder by name, in the order of names."""
    names = sorted((e.name for e in _list_entries(folder) if stat.S_ISDIR(_get_status(e).st_mode)), key=os.fsencode)
    return {name: folder / name for name in names}


def _has_images(folder: Path) -> bool:
    return any(_is_image(entry) for entry in _list_entries(folder))


def _list_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UsageError(f"every folder must be readable: {printable(folder)}: {error.strerror}") from error


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


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(SUFFIXES)


def _describe_too_few_classes(root: Path, folders: dict[str, Path]) -> str:
    rule = "at least two class folders with images are needed"
    if folders:
        only = printable(next(iter(folders.values())))
        return f"{rule}: {printable(root)} has one: {only}; add another, or give {only} if the class folders are in it"
    return f"{rule}: {printable(root)} has none; put the images of each class into a folder of the class's name"


def _check_same_classes(root: Path, part: str, train: dict[str, Path], others: dict[str, Path]) -> None:
    missing, extra = sorted(train.keys() - others.keys()), sorted(others.keys() - train.keys())
    if missing or extra:
        came = f"lacks {join_names(missing)}" if missing else f"has {join_names(extra)}, which train lacks"
        raise UsageError(
            f"every split needs the same class folders: in {printable(root)} the {part} folder {came}; "
            "add or remove class folders"
        )
