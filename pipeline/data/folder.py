"""A folder of class folders -> its classes and the image files of each split, without opening them."""

import logging
import os
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from pipeline.data.class_names import clean_class_names
from pipeline.data.layout import descend, find_splits
from pipeline.data.walk import SUFFIXES, count_images, describe_passed_over, list_subfolders, walk_images
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import count, join_names, printable

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
    """List a folder of class folders, or of train/, val/ and test/ with class folders; see `layout`.

    A class has all images below its folder, at any depth and through links, in the order of their paths' bytes.
    Hidden files and folders are ignored; other files that are no images, and images beside the class folders, are
    counted in a warning.

    Raises:
        UsageError: The folder has no such structure, or cannot be read.
    """
    splits = find_splits(root)
    folders = {part: _class_folders(path) for part, path in splits.items()}
    train, classes = folders["train"], list(folders["train"])
    if len(classes) < 2:
        raise UsageError(_describe_too_few_classes(root, splits["train"], train))
    for part, others in folders.items():
        _check_same_classes(splits[part], part, train, others)
    passed_over = {name: Counter[str]() for name in classes}
    parts = {
        part: [
            file for label, name in enumerate(classes) for file in _list_class(others[name], label, passed_over[name])
        ]
        for part, others in folders.items()
    }
    _warn_of_passed_over(root, passed_over)
    _warn_of_images_beside(dict.fromkeys([root, *splits.values()]))
    return FolderListing(root, tuple(classes), parts)


def _class_folders(folder: Path) -> dict[str, Path]:
    """Return the class folders of a split by the names of the classes."""
    folders = list_subfolders(folder)
    return {name: folders[given] for name, given in clean_class_names(folders, place=folder).items()}


def _list_class(folder: Path, label: int, passed_over: Counter[str]) -> list[ImageFile]:
    files = [
        ImageFile(file.path, label, file.status.st_size, file.status.st_mtime_ns)
        for file in walk_images(folder, passed_over)
    ]
    if not files:
        instead = f" but {describe_passed_over(passed_over)}" if passed_over else ""
        raise UsageError(
            f"every class needs images ({', '.join(SUFFIXES)}): {printable(folder)} has none{instead}; "
            "add some or remove it"
        )
    return sorted(files, key=lambda file: os.fsencode(file.path))


def _warn_of_passed_over(root: Path, by_class: dict[str, Counter[str]]) -> None:
    total = sum(by_class.values(), Counter[str]())
    if total:
        classes = sorted((name for name in by_class if by_class[name]), key=lambda name: -by_class[name].total())
        log.warning(
            "passed over in %s, as no image has such a suffix: %s, of the classes %s",
            printable(root),
            describe_passed_over(total),
            join_names([f"{name} {by_class[name].total():,}" for name in classes]),
        )


def _warn_of_images_beside(folders: dict[Path, None]) -> None:
    for folder in folders:
        if images := count_images(folder):
            log.warning("passed over: %s beside the folders in %s", count(images, "image"), printable(folder))


def _describe_too_few_classes(root: Path, folder: Path, classes: dict[str, Path]) -> str:
    rule = "at least two class folders with images are needed"
    if classes:
        only = next(iter(classes.values()))
        lowest = printable(descend(only))
        remedy = f"give {lowest}" if folder == root else f"move them from {lowest} to {printable(folder)}"
        return (
            f"{rule}: {printable(folder)} has one: {printable(only)}; "
            f"add another, or {remedy} if the class folders are in it"
        )
    has = f"{count(images, 'image')} but no folder" if (images := count_images(folder)) else "none"
    return f"{rule}: {printable(folder)} has {has}; put the images of each class into a folder of the class's name"


def _check_same_classes(folder: Path, part: str, train: dict[str, Path], others: dict[str, Path]) -> None:
    """Raise UsageError if a split has other class folders than training."""
    missing, extra = [name for name in train if name not in others], [name for name in others if name not in train]
    if not missing and not extra:
        return
    if not others:
        has = f"has {count(images, 'image')} but no folder" if (images := count_images(folder)) else "has no folder"
        remedy = f"sort its images into class folders, or move it away: then a part of train is held out as {part}"
    elif missing and extra:
        has = f"lacks {join_names(missing)}, and has {join_names(extra)} instead"
        remedy = "name its folders as those of train"
    elif missing:
        has, remedy = f"lacks {join_names(missing)}", "add images of each class, or move it away"
    else:
        has, remedy = f"has {join_names(extra)}, which train lacks", "add training images, or move these folders away"
    raise UsageError(
        f"every split needs the same class folders, here {join_names(train)}: the {part} folder {has}: "
        f"{printable(folder)}; {remedy}"
    )
