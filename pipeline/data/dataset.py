"""A data set's name or path -> training, validation and test images, decoded once and shared between processes."""

import os
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL

from pipeline.config.training import TrainingConfig
from pipeline.data.builtin import CLASSES, open_named, source_of
from pipeline.data.cache import Allocate, DecodedImages, cache_key, load_cached
from pipeline.data.folder import list_folder
from pipeline.data.npz import read_npz, stack_splits
from pipeline.data.read_images import read_images
from pipeline.data.splits import split_rows, subsample
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import one_line

NAMES = tuple(CLASSES)
_NAME = 100  # characters of a path's last part, which names a data set
GENERIC = {"train", "data", "dataset", "images", "imgs"}  # last parts of a path that do not tell data sets apart


@dataclass(frozen=True, eq=False)
class Split:
    """Some rows of the arrays that all splits share; nothing is copied before `take`."""

    images: np.ndarray = field(repr=False)  # (n, h, w, c) uint8, a memory map where cached
    labels: np.ndarray = field(repr=False)  # (n,) int64
    image_digests: np.ndarray = field(repr=False)  # (n,) of each image's pixels
    rows: np.ndarray  # (m,) of this split, ascending

    def __len__(self) -> int:
        """Count the images of the split."""
        return len(self.rows)

    def take(self, positions: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """Copy images (b, h, w, c) uint8 and labels (b,) int64 at positions from 0 to m - 1 within the split."""
        rows = self.rows[positions]
        return np.asarray(self.images[rows]), np.asarray(self.labels[rows])

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of the split's pixels and labels in their order, the same on every machine."""
        return _digest(self.images.shape[1:], self.image_digests[self.rows], self.labels[self.rows])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, split."""

    name: str  # as given, or from the path
    source: str  # what it was read from: a function or an absolute path
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (h, w, c)
    train: Split
    validation: Split
    test: Split
    duplicates: int  # validation images whose pixels also stand in train, and test images in either of the two
    fingerprint: str  # of all pixels, labels and class names, the same on every machine


class _Found(NamedTuple):
    name: str
    source: str
    decoded: DecodedImages


def load_splits(
    dataset: str,
    *,
    image_size: tuple[int, int] | None,
    validation_fraction: float,
    train_examples: int | None,
    seed: int,
) -> Dataset:
    """Load a data set by name (NAMES), from a folder of class folders or from an .npz file.

    Images are stretched to `image_size` (height, width) where it is given. Validation and test are split off by
    class and seed where the source does not have them; at most `train_examples` training images are used.
    """
    if not 0 < validation_fraction < 1:
        raise UsageError(f"validation_fraction must lie between 0 and 1: got {validation_fraction}; 0.1 is usual")
    name, source, decoded = _find(dataset, image_size)
    labels, classes = decoded.labels, decoded.classes
    rows = split_rows(labels, decoded.sizes, classes, validation_fraction, seed)
    if train_examples is not None:
        if train_examples < len(classes):
            raise UsageError(
                f"train_examples must be at least the number of classes: {len(classes)} in {source}, "
                f"got {train_examples}; try {10 * len(classes)}"
            )
        rows = rows._replace(train=subsample(rows.train, train_examples, labels, len(classes), seed))
    train, validation, test = (Split(decoded.images, labels, decoded.digests, part) for part in rows)
    return Dataset(
        name,
        source,
        classes,
        image_shape=decoded.images.shape[1:],
        train=train,
        validation=validation,
        test=test,
        duplicates=_duplicates(train, validation, test),
        fingerprint=_digest(decoded.images.shape[1:], decoded.digests, labels, *classes),
    )


def check_dataset_exists(dataset: str) -> None:
    """Raise UsageError where a name or path leads to no data set; nothing is read yet."""
    if dataset not in NAMES:
        _path(dataset)


def _find(dataset: str, image_size: tuple[int, int] | None) -> _Found:
    if dataset in NAMES:
        return _Found(dataset, source_of(dataset), open_named(dataset, image_size))
    path = _path(dataset)
    if os.path.isdir(path):
        return _Found(_name(path), str(path), _open_folder(path, image_size))
    return _Found(_name(path.with_suffix("")), str(path), _open_npz(path, image_size))


def _path(dataset: str) -> Path:
    """The folder or .npz file that is meant."""
    path = Path(os.path.abspath(os.path.expanduser(dataset)))
    _refuse_undecodable(path)
    if dataset and os.path.isdir(path):  # which, unlike Path's own, is False for a name that no file can have
        return path
    if path.suffix.lower() == ".npz" and os.path.isfile(path):
        return path
    close = get_close_matches(dataset.lower(), NAMES, n=1)
    cure = f"did you mean {close[0]}?" if close else "check the spelling of the path"
    if os.path.exists(path):
        cure = "extract an archive first, and give the folder"
    raise UsageError(
        f"dataset must be {', '.join(NAMES)}, an existing folder of class folders or an .npz file: "
        f"got {one_line(dataset, most=400) or 'nothing'} ({one_line(path, most=400)}); {cure}"
    )


def _refuse_undecodable(path: Path) -> None:
    """MLflow records where images come from, and its stores take UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError(f"the path of a data set must be UTF-8 text: got {path}; rename what is not") from None


def _name(path: Path) -> str:
    telling = [part for part in path.parts[1:] if part.lower() not in GENERIC]
    return one_line(telling[-1] if telling else path.name, most=_NAME)


def _open_folder(root: Path, image_size: tuple[int, int] | None) -> DecodedImages:
    listing = list_folder(root)
    files = [file for part in listing.parts.values() for file in part]

    def decode(allocate: Allocate) -> DecodedImages:
        paths, file_bytes = [file.path for file in files], sum(file.bytes for file in files)
        pixels = read_images(paths, file_bytes, image_size, allocate)
        labels = np.array([file.label for file in files], np.int64)
        train, validation, test = (len(listing.parts.get(part, ())) for part in ("train", "validation", "test"))
        return DecodedImages(pixels.images, pixels.digests, labels, listing.classes, (train, validation, test))

    return load_cached(cache_key(listing.fingerprint(), image_size, PIL.__version__), decode)


def _open_npz(file: Path, image_size: tuple[int, int] | None) -> DecodedImages:
    def decode(allocate: Allocate) -> DecodedImages:
        parts, classes = read_npz(file)
        return stack_splits(parts, classes, image_size, allocate)

    status = file.stat()
    return load_cached(cache_key(str(file), status.st_size, status.st_mtime_ns, image_size), decode)


def _duplicates(train: Split, validation: Split, test: Split) -> int:
    seen, in_validation, in_test = (part.image_digests[part.rows] for part in (train, validation, test))
    in_both = np.concatenate([seen, in_validation])
    return int(np.isin(in_validation, seen).sum() + np.isin(in_test, in_both).sum())


def _digest(shape: tuple[int, ...], image_digests: np.ndarray, labels: np.ndarray, *classes: str) -> str:
    digest = blake2b(repr((shape, classes)).encode(), digest_size=8)
    digest.update(image_digests.tobytes())
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def load_dataset(config: TrainingConfig) -> Dataset:
    """Load and split the data; see `pipeline.data.dataset.load_splits`.

    Raises:
        UsageError: data that is not there, or that cannot be used.
    """
    return load_splits(
        config.dataset,
        image_size=config.image_size,
        validation_fraction=config.validation_fraction,
        train_examples=config.train_examples,
        seed=config.seed,
    )
