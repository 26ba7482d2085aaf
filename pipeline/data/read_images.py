"""Image files -> one array of their pixels, read over all cores."""

import logging
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import NamedTuple

import numpy as np

from pipeline.data.cache import DIGEST_BYTES, Allocate, image_digest
from pipeline.data.decode import MODES, describe_error, image_size, read_image, resize_to
from pipeline.data.worker_pool import Call, worker_pool
from pipeline.runtime.cpu import available_cores
from pipeline.runtime.errors import UsageError, WorkerDied
from pipeline.runtime.text import join_names, printable

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
CHANNELS = {mode: channels for channels, mode in MODES.items()}


class Batch(NamedTuple):
    """What came of reading b files for a common (h, w, c); rows of files that do not fit it are zero."""

    images: np.ndarray  # (b, h, w, c) uint8
    digests: np.ndarray  # (b,) DIGEST
    channels: int  # that the richest of the files needs: 1, 3 or 4
    size_mismatch: tuple[str, tuple[int, int]] | None  # a file of another size, and its (height, width)
    errors: list[tuple[str, str]]  # (file, reason) of those that cannot be read


def read_batch(files: Sequence[str], shape: tuple[int, int, int], resize: bool) -> Batch:
    """Read files into one array of `shape` (h, w, c), stretching them to it where `resize` is set."""
    images = np.zeros((len(files), *shape), np.uint8)
    digests = np.zeros(len(files), DIGEST_BYTES)
    channels = 1
    odd: tuple[str, tuple[int, int]] | None = None
    faults: list[tuple[str, str]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged EXIF block, a palette with odd transparency: the pixels are fine
        for row, file in enumerate(files):
            try:
                image = read_image(file)
            except Exception as error:  # noqa: BLE001 - decoders raise whatever a damaged file leads them into
                faults.append((file, describe_error(error)))
                continue
            channels = max(channels, CHANNELS[image.mode])
            if resize or image_size(image) == shape[:2]:
                images[row] = resize_to(image, shape)
                digests[row] = image_digest(images[row])
            else:
                odd = (file, image_size(image))
    return Batch(images, digests, channels, odd, faults)


BATCH_FILES, BATCH_BYTES = 256, 4 << 20  # at most so much a call: short, so that Ctrl-C is too
WORKER_FILES, WORKER_BYTES = 1_000, 4 << 20  # read in about the time that one more process takes to start
SAMPLE = 16  # files looked at for the shape of all
PER_CORE = 2  # processes: one waits for the disk while the other decodes

log = logging.getLogger(__name__)


class Pixels(NamedTuple):
    """Images and the digest of each."""

    images: np.ndarray  # (n, h, w, c) uint8
    digests: np.ndarray  # (n,) DIGEST


def read_images(
    files: Sequence[str], file_bytes: int, image_size: tuple[int, int] | None, allocate: Allocate
) -> Pixels:
    """Read files of `file_bytes` in all, stretched to `image_size` (height, width) where it is given.

    All get the channels that the richest needs: 1 if all are gray, 4 if any has a see-through pixel, else 3.
    """
    processes = min(PER_CORE * available_cores(), 1 + len(files) // WORKER_FILES + file_bytes // WORKER_BYTES)
    step = max(1, min(BATCH_FILES, BATCH_BYTES * len(files) // max(file_bytes, 1)))
    log.debug("reading %s images with %d process(es)", f"{len(files):,}", processes)
    sample = read_batch(files[:: max(1, len(files) // SAMPLE)], (1, 1, 1), False)
    size = image_size or (sample.odd[1] if sample.odd else (1, 1))
    resize = image_size is not None
    with worker_pool(processes) as call:
        pixels, channels = _read_files(call, processes, files, (*size, sample.channels), step, resize, allocate)
        if channels > sample.channels:  # the sample was poorer than the rest
            del pixels  # before as much is allocated again
            pixels, _ = _read_files(call, processes, files, (*size, channels), step, resize, allocate)
    return pixels


def _read_files(
    call: Call,
    processes: int,
    files: Sequence[str],
    shape: tuple[int, int, int],
    step: int,
    resize: bool,
    allocate: Allocate,
) -> tuple[Pixels, int]:
    """Pixels of all files as images of `shape`, and the channels that the richest file needs."""
    pixels = Pixels(allocate((len(files), *shape)), np.zeros(len(files), DIGEST_BYTES))

    def place(start: int) -> Batch:
        rows = slice(start, start + step)
        batch = _call_workers(call, files[rows], shape, resize)
        pixels.images[rows], pixels.digests[rows] = batch.images, batch.digests
        return batch._replace(images=batch.images[:0])

    channels, faults = 1, []
    step = max(1, min(step, BATCH_BYTES // prod(shape)))
    with ThreadPoolExecutor(processes) as threads:
        try:
            for batch in threads.map(place, range(0, len(files), step)):
                _refuse_other_size(batch.size_mismatch, shape)
                channels = max(channels, batch.channels)
                faults += batch.errors
        finally:
            threads.shutdown(cancel_futures=True)
    _refuse_faults(faults, len(files))
    return pixels, channels


def _call_workers(call: Call, files: Sequence[str], shape: tuple[int, int, int], resize: bool) -> Batch:
    try:
        batch: Batch = call(read_batch, files, shape, resize)
        return batch
    except WorkerDied as error:
        first, last = printable(files[0]), printable(files[-1])
        raise UsageError(
            f"every image must be readable: {error} on one of {first} to {last}; "
            "look for a damaged file, or free some memory"
        ) from error


def _refuse_other_size(odd: tuple[str, tuple[int, int]] | None, shape: tuple[int, int, int]) -> None:
    if odd is None:
        return
    file, (height, width) = odd
    raise UsageError(
        f"images must be of one size where image_size is not given: some are {shape[0]} x {shape[1]} pixels "
        f"(height x width), {printable(file)} is {height} x {width}; give image_size to stretch all to it"
    )


def _refuse_faults(faults: list[tuple[str, str]], count: int) -> None:
    if not faults:
        return
    named = join_names([f"{file} ({reason})" for file, reason in faults])
    raise UsageError(
        f"every image must be readable: {len(faults):,} of {count:,} cannot be read: {named}; replace or remove them"
    )
