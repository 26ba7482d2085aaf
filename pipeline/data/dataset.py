"""A data set's name or path -> training, validation and test images, decoded once and shared between processes."""

import os
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL

from pipeline.config.training import DataConfig
from pipeline.data.builtin import CLASSES, describe_source, load_builtin
from pipeline.data.cache import Allocate, DecodedImages, cache_key, load_cached, resize_key
from pipeline.data.folder import list_folder
from pipeline.data.npz import read_npz, stack_splits
from pipeline.data.read_images import read_images
from pipeline.data.splits import SplitRows, fold_rows, split_rows, subsample
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import one_line

BUILTIN_NAMES = tuple(CLASSES)
MAX_NAME_CHARACTERS = 100
# Last parts of a path that do not tell data sets apart.
GENERIC_FOLDERS = {"train", "data", "dataset", "images", "imgs"}


@dataclass(frozen=True, eq=False)
class Split:
    """Some rows of the arrays that all splits share; nothing is copied before `take`."""

    images: np.ndarray = field(repr=False)  # (n, h, w, c) uint8, a memory map if cached
    labels: np.ndarray = field(repr=False)  # (n,) int64
    image_digests: np.ndarray = field(repr=False)  # (n,) of each image's pixels
    files: np.ndarray = field(repr=False)  # (n,) bytes, see `DecodedImages`
    rows: np.ndarray  # (m,) of this split, ascending

    def __len__(self) -> int:
        """Return the number of images in the split."""
        return len(self.rows)

    def take(self, positions: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """Copy images (b, h, w, c) uint8 and labels (b,) int64 at positions from 0 to m - 1 within the split."""
        rows = self.rows[positions]
        return np.asarray(self.images[rows]), np.asarray(self.labels[rows])

    def file_names(self, positions: np.ndarray | slice = slice(None)) -> list[str]:
        """Return the paths of the images' files below the data set's folder, with / between folders.

        A name is empty where the data set has no files; bytes that are not UTF-8 are escaped.
        """
        return [name.decode(errors="backslashreplace") for name in self.files[self.rows[positions]].tolist()]

    def class_sizes(self, classes: int) -> list[int]:
        """Return the number of images of each class."""
        return np.bincount(self.labels[self.rows], minlength=classes).tolist()

    @property
    def digest(self) -> str:
        """Return 16 hexadecimal digits for the split's pixels and labels in order, the same on every machine."""
        return _digest(self.images.shape[1:], self.image_digests[self.rows], self.labels[self.rows])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its three splits.

    With the setting `folds` training and validation images are those of the first fold.
    """

    name: str  # as given, or from the path
    source: str  # what it was read from: a function or an absolute path
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (h, w, c)
    train: Split
    validation: Split  # without images with the setting `refit`
    test: Split
    duplicates: int  # images of a split or fold whose pixels are also in an earlier one
    fingerprint: str  # of all pixels, labels and class names, the same on every machine
    folds: tuple[Split, ...] = ()  # the parts of the training and validation images together

    def fold(self, number: int) -> "Dataset":
        """Return the data set as a fold is trained, counted from 1: on all folds but this one, which validates."""
        rest = [fold.rows for index, fold in enumerate(self.folds, start=1) if index != number]
        train = replace(self.train, rows=np.sort(np.concatenate(rest)))
        return replace(self, train=train, validation=self.folds[number - 1])

    @property
    def out_of_fold(self) -> Split:
        """Return the images of all folds, each of which is validated by the network of its fold."""
        return replace(self.train, rows=np.sort(np.concatenate([fold.rows for fold in self.folds])))


class _Decoded(NamedTuple):
    name: str
    source: str
    images: DecodedImages


def load_dataset(config: DataConfig, *, seed: int, split: bool = True) -> Dataset:
    """Load a data set and split it.

    `config.dataset` is the name of a built-in data set, a folder of class folders or an .npz file. Validation and test
    images are split off by class and seed if the source has no such split. Of the training images at most
    `config.train_examples` are taken; with `config.folds` so many that no network is trained on more. With
    `config.refit` the validation images, also those that the source has itself, are training images besides.

    Args:
        config: Settings of the data.
        seed: Decides which images are in which split.
        split: False takes all images as test images, however few a class has.

    Raises:
        UsageError: The data set does not exist, or cannot be used.
    """
    name, source, decoded = _decode(config)
    labels, classes = decoded.labels, decoded.classes
    if split:
        rows = split_rows(labels, decoded.sizes, classes, config.validation_fraction, seed)
    else:
        everything = np.arange(len(labels))
        rows = SplitRows(train=everything[:0], validation=everything[:0], test=everything)
    if config.folds is not None:
        rows = _train_on_validation(rows)
    if config.train_examples is not None:
        count, least = _training_limits(config.train_examples, config.folds, classes, source)
        rows = rows._replace(train=subsample(rows.train, count, labels, len(classes), seed, least=least))
    if config.refit:
        # those that a training without it learns from, and those that it is judged by
        rows = _train_on_validation(rows)
    train, validation, test = (Split(decoded.images, labels, decoded.digests, decoded.files, part) for part in rows)
    folds: tuple[Split, ...] = ()
    if config.folds is not None:
        parts = fold_rows(rows.train, labels, classes, config.folds, seed)
        folds = tuple(replace(train, rows=part) for part in parts)
    dataset = Dataset(
        name,
        source,
        classes,
        image_shape=decoded.images.shape[1:],
        train=train,
        validation=validation,
        test=test,
        duplicates=_count_duplicates(*(folds or (train, validation)), test),
        fingerprint=_digest(decoded.images.shape[1:], decoded.digests, labels, *classes),
        folds=folds,
    )
    return dataset.fold(1) if folds else dataset


def absolute_path(dataset: str) -> Path:
    """Return the absolute path that a data set's path means, without reading anything."""
    return Path(os.path.abspath(os.path.expanduser(dataset)))


def check_dataset_exists(dataset: str) -> None:
    """Raise UsageError if there is no data set of this name or path, without reading any data."""
    if dataset not in BUILTIN_NAMES:
        _resolve_path(dataset)


def _decode(config: DataConfig) -> _Decoded:
    dataset, image_size, resize = config.dataset, config.image_size, config.resize
    if dataset in BUILTIN_NAMES:
        return _Decoded(dataset, describe_source(dataset), load_builtin(dataset, image_size, resize))
    path = _resolve_path(dataset)
    if os.path.isdir(path):
        return _Decoded(_name_from_path(path), str(path), _decode_folder(path, image_size, resize))
    return _Decoded(_name_from_path(path.with_suffix("")), str(path), _decode_npz(path, image_size, resize))


def _resolve_path(dataset: str) -> Path:
    """Return the absolute path of a folder or .npz file."""
    path = absolute_path(dataset)
    _check_utf8(path)
    # os.path's functions, unlike Path's, are False for a name that no file can have.
    if dataset and os.path.isdir(path):
        return path
    if path.suffix.lower() == ".npz" and os.path.isfile(path):
        return path
    close = get_close_matches(dataset.lower(), BUILTIN_NAMES, n=1)
    remedy = f"did you mean {close[0]}?" if close else "check the spelling of the path"
    if os.path.exists(path):
        remedy = "extract an archive first, and give the folder"
    raise UsageError(
        f"dataset must be {', '.join(BUILTIN_NAMES)}, an existing folder of class folders or an .npz file: "
        f"got {one_line(dataset, most=400) or 'nothing'} ({one_line(path, most=400)}); {remedy}"
    )


def _check_utf8(path: Path) -> None:
    """Raise UsageError if a path is not UTF-8: MLflow records it, and its stores take UTF-8 only."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError(f"the path of a data set must be UTF-8 text: got {path}; rename what is not") from None


def _name_from_path(path: Path) -> str:
    telling = [part for part in path.parts[1:] if part.lower() not in GENERIC_FOLDERS]
    return one_line(telling[-1] if telling else path.name, most=MAX_NAME_CHARACTERS)


def _decode_folder(root: Path, image_size: tuple[int, int] | None, resize: str) -> DecodedImages:
    listing = list_folder(root)
    files = [file for part in listing.parts.values() for file in part]

    def decode(allocate: Allocate) -> DecodedImages:
        paths, file_bytes = [file.path for file in files], sum(file.bytes for file in files)
        pixels = read_images(paths, file_bytes, image_size, allocate, resize=resize)
        labels = np.array([file.label for file in files], np.int64)
        train, validation, test = (len(listing.parts.get(part, ())) for part in ("train", "validation", "test"))
        names = np.array([_relative_name(path, root) for path in paths])
        sizes = (train, validation, test)
        return DecodedImages(pixels.images, pixels.digests, labels, names, listing.classes, sizes)

    key = cache_key(listing.fingerprint(), resize_key(image_size, resize), PIL.__version__)
    return load_cached(key, decode)


def _relative_name(path: str, root: Path) -> bytes:
    """Return the path of a file below a folder as bytes, as Pathlib would, which takes six times as long."""
    return os.fsencode(path.removeprefix(f"{root}{os.sep}")).replace(os.sep.encode(), b"/")


def _decode_npz(file: Path, image_size: tuple[int, int] | None, resize: str) -> DecodedImages:
    def decode(allocate: Allocate) -> DecodedImages:
        parts, classes = read_npz(file)
        return stack_splits(parts, classes, image_size, allocate, resize=resize)

    status = file.stat()
    key = cache_key(str(file), status.st_size, status.st_mtime_ns, resize_key(image_size, resize))
    return load_cached(key, decode)


def _train_on_validation(rows: SplitRows) -> SplitRows:
    """Return the rows with those of the validation images among those of the training images."""
    return rows._replace(train=np.sort(np.concatenate([rows.train, rows.validation])), validation=rows.validation[:0])


def _training_limits(train_examples: int, folds: int | None, classes: tuple[str, ...], source: str) -> tuple[int, int]:
    """Return how many training images to take at most, and how many of each class at least.

    These are the images of all folds; each network is trained on all folds but one.

    Raises:
        UsageError: There would be too few images for each class.
    """
    parts = 1 if folds is None else folds - 1
    if train_examples < parts * len(classes):
        of_folds = "" if folds is None else f" times folds - 1, with folds={folds}"
        raise UsageError(
            f"train_examples must be at least the number of classes{of_folds}: {parts * len(classes)} in {source}, "
            f"got {train_examples}; try {10 * parts * len(classes)}"
        )
    return (train_examples, 1) if folds is None else (train_examples * folds // parts, folds)


def _count_duplicates(*splits: Split) -> int:
    """Return how many images of a split are, pixel for pixel, also in an earlier one."""
    digests = [split.image_digests[split.rows] for split in splits]
    return sum(int(np.isin(own, np.concatenate(digests[:index])).sum()) for index, own in enumerate(digests) if index)


def _digest(shape: tuple[int, ...], image_digests: np.ndarray, labels: np.ndarray, *classes: str) -> str:
    digest = blake2b(repr((shape, classes)).encode(), digest_size=8)
    digest.update(image_digests.tobytes())
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()
