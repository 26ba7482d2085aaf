"""The cache of decoded data sets: built once by one process, then shared by all as memory maps."""

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from math import prod
from pathlib import Path

import numpy as np
import psutil

from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import cache_folder, lock, private_folder, try_lock
from pipeline.runtime.text import printable

# Version of the cached files and of how pixels are computed: raise it when either changes.
FORMAT = 3
# The digest of one image's pixels: BLAKE2b, 128 bits.
DIGEST_DTYPE = np.dtype("S16")
# Follows the key in the name of a folder that is not finished.
BUILDING = ".building-"
METADATA_FILE = "metadata.json"
# A folder has the modification time of when it was last opened.
UNUSED_DAYS = 30
KEYS = "[0-9a-f]" * 32  # matches the names of finished folders

Allocate = Callable[[tuple[int, ...]], np.ndarray]  # shape -> uint8 array to fill, on disk or in memory

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DecodedImages:
    """All images of a data set: training images first, then validation, then test."""

    images: np.ndarray  # (n, h, w, c) uint8
    digests: np.ndarray  # (n,) DIGEST_DTYPE
    labels: np.ndarray  # (n,) int64
    files: np.ndarray  # (n,) of bytes: paths below the data set's folder; empty where it has no files
    classes: tuple[str, ...]
    sizes: tuple[int, int, int]  # images of training, validation and test in the source; 0: not split yet


def cache_key(*parts: object) -> str:
    """Return the key of what was made from `parts`, in this format."""
    return blake2b(repr((FORMAT, *parts)).encode(), digest_size=16).hexdigest()


def resize_key(image_size: tuple[int, int] | None, resize: str) -> object:
    """Return the part of a key that says how images are resized; see `resize_to`."""
    return image_size if image_size is None or resize == "stretch" else (image_size, resize)


def image_digest(pixels: np.ndarray) -> bytes:
    """Return the digest of one image's pixels (h, w, c)."""
    return blake2b(pixels.tobytes(), digest_size=DIGEST_DTYPE.itemsize).digest()


def load_cached(key: str, decode: Callable[[Allocate], DecodedImages]) -> DecodedImages:
    """Open the data set cached under `key`, decoding it first if it is missing or damaged.

    If the cache cannot be written (read-only, full disk), the images are decoded into memory, with a warning. Before
    images are decoded, the data sets that no process has opened for UNUSED_DAYS are removed.

    Raises:
        UsageError: The images fit neither into the cache nor into memory.
    """
    folder = cache_folder("data", key)
    # before it is opened, so that no other process removes it meanwhile
    with suppress(OSError):
        os.utime(folder)
    if cached := _open(folder):
        return cached
    try:
        return _build(folder, decode)
    except OSError as error:
        log.warning("images are decoded into memory: the cache %s: %s", printable(folder.parent), printable(error))
    return decode(_allocate_in_memory)


def cached_data_sets() -> Iterator[DecodedImages]:
    """Yield all data sets that are in the cache."""
    for folder in sorted(cache_folder("data").glob("*")):
        if BUILDING not in folder.name and (cached := _open(folder)):
            yield cached


def _open(folder: Path) -> DecodedImages | None:
    """Return the data set in a folder, or None if it is missing or incomplete."""
    try:
        images, digests, labels, files = (
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("images", "digests", "labels", "files")
        )
        metadata = json.loads((folder / METADATA_FILE).read_text("utf-8"))
        decoded = DecodedImages(images, digests, labels, files, tuple(metadata["classes"]), tuple(metadata["sizes"]))
        lengths = {len(array) for array in (images, digests, labels, files)}
        is_complete = images.ndim == 4 and lengths == {sum(decoded.sizes)}
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    return decoded if is_complete else None


def _build(folder: Path, decode: Callable[[Allocate], DecodedImages]) -> DecodedImages:
    private_folder("data")
    _remove_leftovers(folder.parent)
    _remove_unused(folder.parent)
    with lock(_lock_file(folder)):
        # Another process may have built it in the meantime.
        if cached := _open(folder):
            return cached
        # The folder is damaged; a process that has it mapped keeps its pages.
        shutil.rmtree(folder, ignore_errors=True)
        building = Path(tempfile.mkdtemp(prefix=folder.name + BUILDING, dir=folder.parent))
        try:
            _save(building, decode(partial(_reserve, building / "images.npy")))
            os.rename(building, folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    if cached := _open(folder):
        return cached
    raise OSError("what was written cannot be read back")


def _reserve(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array on disk whose space is allocated at once.

    A full disk is an error here, whereas writing to a memory map would end the process with SIGBUS.
    """
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # Linux
        with open(file, "r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return array


def _allocate_in_memory(shape: tuple[int, ...]) -> np.ndarray:
    needed, free = prod(shape), psutil.virtual_memory().available
    if needed > free:
        raise UsageError(
            f"decoded images must fit in the cache or in memory: they take {needed / 1e9:,.1f} GB, memory has "
            f"{free / 1e9:,.1f} GB and the cache {cache_folder('data')} less; free some room, name another folder in "
            "XDG_CACHE_HOME, or give a smaller image_size"
        )
    return np.empty(shape, np.uint8)


def _save(folder: Path, decoded: DecodedImages) -> None:
    """Write everything but the images, which are in their file already."""
    # After a power cut only the images could be incomplete and look complete.
    if isinstance(decoded.images, np.memmap):
        decoded.images.flush()
    np.save(folder / "digests.npy", decoded.digests)
    np.save(folder / "labels.npy", decoded.labels)
    np.save(folder / "files.npy", decoded.files)
    metadata = {"classes": decoded.classes, "sizes": decoded.sizes}
    (folder / METADATA_FILE).write_text(json.dumps(metadata), "utf-8")


def _remove_leftovers(parent: Path) -> None:
    """Remove unfinished folders of killed processes: those whose lock nobody holds."""
    for leftover in parent.glob(f"*{BUILDING}*"):
        with try_lock(_lock_file(leftover)) as unused:
            if unused:
                shutil.rmtree(leftover, ignore_errors=True)


def _remove_unused(parent: Path) -> None:
    """Remove the data sets that no process has opened for UNUSED_DAYS.

    A process that has one mapped keeps its pages. One that opens it in this moment finds a file missing, and decodes
    the images again.
    """
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for folder in parent.glob(KEYS):
        # another user's, or removed by another process at the same time
        with suppress(OSError), try_lock(_lock_file(folder)) as unlocked:
            if unlocked and folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


def _lock_file(folder: Path) -> Path:
    return folder.with_name(folder.name.partition(BUILDING)[0] + ".lock")
