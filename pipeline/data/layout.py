"""A folder -> the folder of each split, recognized by their names; other layouts are refused.

Folders of splits that are taken for classes train to a plausible accuracy, so what looks like them is refused.
"""

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.data.class_names import clean_class_name
from pipeline.data.walk import count_images, list_subfolders
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import join_names, printable

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Words that say nothing beside one of these: train_images, Test Set.
FILLERS = "sets? data datasets? images? imgs? pictures? pics? photos? samples? splits? files? folder".split()
SPLIT_NAME = re.compile("(?:{0})*({1})(?:{0})*".format("|".join(FILLERS), "|".join(SPLIT_WORDS)))
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")  # TestSet2 -> Test, Set, 2
WANTED = "class folders, or train, val and test folders with the same class folders in each"

log = logging.getLogger(__name__)


class SplitName(NamedTuple):
    """A folder's name that names a split."""

    part: str  # train, validation or test
    rest: tuple[str, ...]  # its other words, which must be the same for all splits: seg_train, seg_test


def find_splits(root: Path) -> dict[str, Path]:
    """Return the folder of each split; the root itself is the training folder if it has class folders.

    A class may be called `train`: its folder then has images, and no folder of another split is beside it.

    Raises:
        UsageError: The folders look like splits, but not all of them have names of splits.
    """
    folders = list_subfolders(root)
    splits = name_splits(folders)
    others = [name for name in folders if name not in splits]
    train = next((folders[name] for name, part in splits.items() if part == "train"), None)
    has_classes = train is None or (len(splits) == 1 and count_images(train) > 0)
    if not splits or (others and has_classes):
        _check_not_nested(root, folders)
        return {"train": root}
    if train is None:
        raise UsageError(f"{join_names(splits)} need a train folder beside them: {printable(root)} has none; add it")
    if len(set(splits.values())) < len(splits):
        raise UsageError(
            f"each split has one folder: {printable(root)} has {join_names(splits)}; keep one for each split"
        )
    if others:
        _check_no_split_among(root, others, folders, train, set(splits.values()))
        log.warning("%s has a train folder; ignored beside it: %s", printable(root), join_names(others))
    return {part: folders[name] for part in ("train", "validation", "test") for name in splits if splits[name] == part}


def name_splits(names: Iterable[str]) -> dict[str, str]:
    """Return the split of each name that names one: `train`, `Testing`, `val_images`; or `seg_train` and `seg_test`.

    Names with other words count only if training and another split have the same ones: `steam_train` may be a class.
    """
    found = {name: split for name in names if (split := parse_split(name))}
    if plain := {name: split.part for name, split in found.items() if not split.rest}:
        return plain
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for name, split in found.items():
        groups.setdefault(split.rest, {})[name] = split.part
    whole = [group for group in groups.values() if "train" in group.values() and len(set(group.values())) > 1]
    return whole[0] if len(whole) == 1 else {}


def parse_split(name: str) -> SplitName | None:
    """Return which split a name names, or None."""
    if whole := SPLIT_NAME.fullmatch(re.sub(r"[\W_]+", "", name).lower()):
        return SplitName(SPLIT_WORDS[whole[1]], ())
    words = [word.lower() for word in WORD.findall(name)]
    splits = [found[1] for word in words if (found := SPLIT_NAME.fullmatch(word))]
    if len(splits) != 1:
        return None
    known = re.compile("|".join([SPLIT_NAME.pattern, *FILLERS]))
    return SplitName(SPLIT_WORDS[splits[0]], tuple(word for word in words if not known.fullmatch(word)))


def descend(folder: Path) -> Path:
    """Return the first folder, from this one on, that has images or not exactly one folder in it."""
    seen = set()
    # Links may lead in a circle.
    while (place := folder.resolve()) not in seen and not count_images(folder):
        seen.add(place)
        inner = list(list_subfolders(folder).values())
        if len(inner) != 1:
            break
        folder = inner[0]
    return folder


def _check_not_nested(root: Path, folders: Mapping[str, Path]) -> None:
    """Raise UsageError if no class folder has images of its own, and all have the same two folders or more."""
    shared: dict[str, str] = {}  # name as printed, by what is compared
    for position, folder in enumerate(folders.values()):
        lowest = descend(folder)
        if count_images(lowest):
            return
        inner = {clean_class_name(name).casefold(): printable(name) for name in list_subfolders(lowest)}
        shared = inner if position == 0 else {name: shown for name, shown in shared.items() if name in inner}
        if len(shared) < 2:
            return
    if len(folders) < 2:
        return
    outer, inside = _braces(folders), _braces(shared.values())
    first = printable(next(iter(folders)))
    if len(name_splits(shared)) < 2:
        remedy = f"wanted train/{inside}, test/{inside} or {inside} alone; rename the folders, or give one of them"
    elif count_images(descend(next(iter(folders.values()))) / next(iter(shared.values()))):
        remedy = f"wanted train/{outer}, test/{outer}; put the classes below the splits"
    else:
        remedy = f"wanted train and test alone; give one of the folders, for example {printable(root / first)}"
    raise UsageError(
        f"a data set must be {WANTED}: found {printable(root)}/{outer}/{inside}, so that {first} would be a class; "
        f"{remedy}"
    )


def _check_no_split_among(
    root: Path, others: Collection[str], folders: Mapping[str, Path], train: Path, found: Collection[str]
) -> None:
    """Raise UsageError if a folder beside train has its class folders and may be a split that is missing."""
    missing = [name for name, part in (("val", "validation"), ("test", "test")) if part not in found]
    classes = set(map(clean_class_name, list_subfolders(train)))
    for name in others:
        inner = set(map(clean_class_name, list_subfolders(folders[name])))
        if missing and len(classes & inner) > 1:
            raise UsageError(
                f"a data set must be {WANTED}: {printable(root)} has {printable(name)} beside {printable(train.name)}, "
                f"with the same class folders; rename it to {' or '.join(missing)}, or move it away"
            )


def _braces(names: Collection[str]) -> str:
    return f"{{{join_names(names)}}}"
