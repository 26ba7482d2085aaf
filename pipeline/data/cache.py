"""Decoded data sets, kept in the user's cache: built once by one process, then shared as memory maps by all."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
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

FORMAT = 1  # of the cached files, and of how pixels are made: raise it when either changes
DIGEST_BYTES = np.dtype("S16")  # of one image's pixels: BLAKE2b, 128 bits
BUILDING = ".building-"  # in the name of a folder that is not finished, after the key

Allocate = Callable[[tuple[int, ...]], np.ndarray]  # shape -> uint8 array to fill, on disk or in memory

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DecodedImages:
    """All images of a data set: those of its training part first, then validation, then test."""

    images: np.ndarray  # (n, h, w, c) uint8
    digests: np.ndarray  # (n,) DIGEST
    labels: np.ndarray  # (n,) int64
    classes: tuple[str, ...]
    sizes: tuple[int, int, int]  # images in training, validation and test as the source has them; 0: to be split off


def cache_key(*parts: object) -> str:
    """Name for what was made from `parts`, in this format."""
    return blake2b(repr((FORMAT, *parts)).encode(), digest_size=16).hexdigest()


def image_digest(pixels: np.ndarray) -> bytes:
    """Digest of one image's pixels (h, w, c)."""
    return blake2b(pixels.tobytes(), digest_size=DIGEST_BYTES.itemsize).digest()


def load_cached(key: str, decode: Callable[[Allocate], DecodedImages]) -> DecodedImages:
    """Open the data set cached under `key`, decoding it first where it is missing or damaged.

    Where the cache cannot be written (read-only, full disk) it is decoded into memory, and a warning is logged.

    Raises:
        UsageError: it fits in neither.
    """
    folder = cache_folder("data", key)
    if found := _opened(folder):
        return found
    try:
        return _built(folder, decode)
    except OSError as error:
        log.warning("images are decoded into memory: the cache %s: %s", printable(folder.parent), printable(error))
    return decode(_in_memory)


def _opened(folder: Path) -> DecodedImages | None:
    """Return the data set in a folder, None if it is not there or not whole."""
    try:
        images, digests, labels = (
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("images", "digests", "labels")
        )
        facts = json.loads((folder / "facts.json").read_text("utf-8"))
        decoded = DecodedImages(images, digests, labels, tuple(facts["classes"]), tuple(facts["sizes"]))
        whole = images.ndim == 4 and len(images) == len(digests) == len(labels) == sum(decoded.sizes)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    return decoded if whole else None


def _built(folder: Path, decode: Callable[[Allocate], DecodedImages]) -> DecodedImages:
    private_folder("data")
    _remove_leftovers(folder.parent)
    with lock(_lock_file(folder)):
        if found := _opened(folder):  # another process was faster
            return found
        shutil.rmtree(folder, ignore_errors=True)  # damaged; whoever has it mapped keeps its pages
        building = Path(tempfile.mkdtemp(prefix=folder.name + BUILDING, dir=folder.parent))
        try:
            _save(building, decode(partial(_reserve, building / "images.npy")))
            os.rename(building, folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    if found := _opened(folder):
        return found
    raise OSError("what was written cannot be read back")


def _reserve(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Array on disk whose room is taken at once: a full disk is an error here, and SIGBUS when a map is written to."""
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # Linux
        with open(file, "r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return array


def _in_memory(shape: tuple[int, ...]) -> np.ndarray:
    needed, free = prod(shape), psutil.virtual_memory().available
    if needed > free:
        raise UsageError(
            f"decoded images must fit in the cache or in memory: they take {needed / 1e9:,.1f} GB, memory has "
            f"{free / 1e9:,.1f} GB and the cache {cache_folder('data')} less; free some room, name another folder in "
            "XDG_CACHE_HOME, or give a smaller image_size"
        )
    return np.empty(shape, np.uint8)


def _save(folder: Path, decoded: DecodedImages) -> None:
    """Write all but the images, which are there; only they could be incomplete after a power cut and look whole."""
    if isinstance(decoded.images, np.memmap):
        decoded.images.flush()
    np.save(folder / "digests.npy", decoded.digests)
    np.save(folder / "labels.npy", decoded.labels)
    facts = {"classes": decoded.classes, "sizes": decoded.sizes}
    (folder / "facts.json").write_text(json.dumps(facts), "utf-8")


def _remove_leftovers(parent: Path) -> None:
    """Remove what killed processes left unfinished: folders whose key nobody holds the lock of."""
    for leftover in parent.glob(f"*{BUILDING}*"):
        with try_lock(_lock_file(leftover)) as unused:
            if unused:
                shutil.rmtree(leftover, ignore_errors=True)


def _lock_file(folder: Path) -> Path:
    return folder.with_name(folder.name.partition(BUILDING)[0] + ".lock")
