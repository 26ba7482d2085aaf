"""Image files -> one array of their pixels, read on all cores."""

import logging
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import prod
from statistics import median
from typing import NamedTuple

import numpy as np

from pipeline.data.cache import DIGEST_DTYPE, Allocate, image_digest
from pipeline.data.decode import (
    MODES,
    describe_12_bits,
    describe_error,
    has_16_bits,
    highest_value,
    image_size,
    load_pixels,
    open_image,
    resize_to,
)
from pipeline.data.worker_pool import Call, worker_pool
from pipeline.runtime.cpu import available_cores
from pipeline.runtime.errors import UsageError, WorkerDied
from pipeline.runtime.text import join_names, printable

CHANNELS = {mode: channels for channels, mode in MODES.items()}

# Limits of one call to a worker: short, so that Ctrl-C takes effect soon.
BATCH_FILES, BATCH_BYTES = 256, 4 << 20
# What one worker reads in about the time that one more worker takes to start.
WORKER_FILES, WORKER_BYTES = 1_000, 4 << 20
# Files that are read first to find the shape of all.
SAMPLE_FILES = 16
# Sides of images that are proposed where sizes differ, and how many patches of a side are proposed with them.
USUAL_SIDES, PATCHES = (32, 64, 96, 128, 160, 192, 224), 16
# Two, because one waits for the disk while the other decodes.
WORKERS_PER_CORE = 2

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """The result of reading b files as images of one shape; rows of files that do not fit are zero."""

    images: np.ndarray  # (b, h, w, c) uint8
    digests: np.ndarray  # (b,) DIGEST_DTYPE
    channels: int  # the most that any of the files needs: 1, 3 or 4
    highest_of_16_bits: int | None  # the highest value, 0 to 255, in files of more than 8 bits; None without such files
    size_mismatch: tuple[str, tuple[int, int]] | None  # a file of another size, and its (height, width)
    errors: list[tuple[str, str]]  # (file, error) for files that cannot be read


class Pixels(NamedTuple):
    """Images and their digests."""

    images: np.ndarray  # (n, h, w, c) uint8
    digests: np.ndarray  # (n,) DIGEST_DTYPE


def read_images(
    files: Sequence[str],
    file_bytes: int,
    image_size: tuple[int, int] | None,
    allocate: Allocate,
    *,
    resize: str,
) -> Pixels:
    """Read image files into one array.

    All images get the channels of the file that needs most: 1 if all are grayscale, 4 if one has a transparent pixel,
    else 3.

    Args:
        file_bytes: Size of all files together.
        image_size: (height, width) to resize the images to. If None, all must have one size.
        allocate: Function that returns the array for the images, given its shape.
        resize: How images of another size are resized, see `resize_to`.

    Raises:
        UsageError: A file cannot be read, the sizes differ, or files of 16 bits use 12 of them.
    """
    workers = min(WORKERS_PER_CORE * available_cores(), 1 + len(files) // WORKER_FILES + file_bytes // WORKER_BYTES)
    batch_files = max(1, min(BATCH_FILES, BATCH_BYTES * len(files) // max(file_bytes, 1)))
    log.debug("reading %s images with %d process(es)", f"{len(files):,}", workers)
    sample = read_batch(files[:: max(1, len(files) // SAMPLE_FILES)], (1, 1, 1), None)
    size = image_size or (sample.size_mismatch[1] if sample.size_mismatch else (1, 1))
    resizing = resize if image_size else None
    with worker_pool(workers) as call:
        pixels, channels = _read_files(call, workers, files, (*size, sample.channels), batch_files, resizing, allocate)
        if channels > sample.channels:
            # The sample had fewer channels than the rest. Free its array before as much is allocated again.
            del pixels
            pixels, _ = _read_files(call, workers, files, (*size, channels), batch_files, resizing, allocate)
    return pixels


def read_batch(files: Sequence[str], shape: tuple[int, int, int], resize: str | None) -> Batch:
    """Read files into one array of images of `shape` (h, w, c).

    Args:
        files: Their paths.
        shape: Of each image.
        resize: How images of another size are resized, see `resize_to`; None leaves them out.
    """
    images = np.zeros((len(files), *shape), np.uint8)
    digests = np.zeros(len(files), DIGEST_DTYPE)
    channels = 1
    highest: list[int] = []
    size_mismatch: tuple[str, tuple[int, int]] | None = None
    errors: list[tuple[str, str]] = []
    with warnings.catch_warnings():
        # Pillow warns of a damaged EXIF block or a palette with odd transparency; the pixels are fine.
        warnings.simplefilter("ignore")
        for row, file in enumerate(files):
            try:
                with open_image(file) as opened:
                    is_deep = has_16_bits(opened)
                    image = load_pixels(opened)
            except Exception as error:  # noqa: BLE001 - a damaged file can make a decoder raise anything
                errors.append((file, describe_error(error)))
                continue
            channels = max(channels, CHANNELS[image.mode])
            if is_deep:
                highest.append(highest_value(image))
            if resize or image_size(image) == shape[:2]:
                images[row] = resize_to(image, shape, resize or "stretch")
                digests[row] = image_digest(images[row])
            else:
                size_mismatch = (file, image_size(image))
    return Batch(images, digests, channels, max(highest, default=None), size_mismatch, errors)


def _read_files(
    call: Call,
    workers: int,
    files: Sequence[str],
    shape: tuple[int, int, int],
    batch_files: int,
    resize: str | None,
    allocate: Allocate,
) -> tuple[Pixels, int]:
    """Read all files as images of `shape` and return them with the most channels that any file needs."""
    pixels = Pixels(allocate((len(files), *shape)), np.zeros(len(files), DIGEST_DTYPE))
    batch_files = max(1, min(batch_files, BATCH_BYTES // prod(shape)))

    def read(start: int) -> Batch:
        rows = slice(start, start + batch_files)
        batch = _call_worker(call, files[rows], shape, resize)
        pixels.images[rows], pixels.digests[rows] = batch.images, batch.digests
        return batch._replace(images=batch.images[:0])

    channels = 1
    errors: list[tuple[str, str]] = []
    highest: list[int] = []
    with ThreadPoolExecutor(workers) as threads:
        try:
            for batch in threads.map(read, range(0, len(files), batch_files)):
                if batch.size_mismatch:
                    raise UsageError(_describe_mismatch(*batch.size_mismatch, shape, files))
                channels = max(channels, batch.channels)
                errors += batch.errors
                highest += [] if batch.highest_of_16_bits is None else [batch.highest_of_16_bits]
        finally:
            threads.shutdown(cancel_futures=True)
    _check_no_errors(errors, len(files))
    if problem := describe_12_bits(max(highest, default=None)):
        raise UsageError(problem)
    return pixels, channels


def _call_worker(call: Call, files: Sequence[str], shape: tuple[int, int, int], resize: str | None) -> Batch:
    try:
        batch: Batch = call(read_batch, files, shape, resize)
        return batch
    except WorkerDied as error:
        first, last = printable(files[0]), printable(files[-1])
        raise UsageError(
            f"every image must be readable: {error} on one of {first} to {last}; "
            "look for a damaged file, or free some memory"
        ) from error


def _describe_mismatch(file: str, size: tuple[int, int], shape: tuple[int, int, int], files: Sequence[str]) -> str:
    """Return that a file has another size than the others, and settings with which it does not matter."""
    sides = []
    for sampled in files[:: max(1, len(files) // SAMPLE_FILES)]:
        # A damaged file, with which a decoder may raise anything, is not this message's subject
        with suppress(Exception), open_image(sampled) as opened:
            sides.append(min(opened.size))
    fitting = [side for side in USUAL_SIDES if side <= median(sides or [0])]
    side = fitting[-1] if fitting else USUAL_SIDES[0]
    return (
        f"images must have one size if image_size is not given: some are {shape[0]} x {shape[1]} pixels "
        f"(height x width), {printable(file)} is {size[0]} x {size[1]}; give image_size to resize all to it, "
        f"for these image_size={side} patch_size={side // PATCHES}, for example"
    )


def _check_no_errors(errors: list[tuple[str, str]], count: int) -> None:
    if not errors:
        return
    listed = join_names([f"{file} ({error})" for file, error in errors])
    raise UsageError(
        f"every image must be readable: {len(errors):,} of {count:,} cannot be read: {listed}; replace or remove them"
    )
