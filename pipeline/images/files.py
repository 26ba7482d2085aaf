"""Image files -> one array of their pixels, read over all cores."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import NamedTuple

import numpy as np

from pipeline.errors import UsageError
from pipeline.images.decoded import DIGEST, Allocate
from pipeline.images.pixels import Batch, read_batch
from pipeline.images.workers import Call, WorkerDied, workers
from pipeline.machine.cores import cores
from pipeline.printable import listed, printable

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
    processes = min(PER_CORE * cores(), 1 + len(files) // WORKER_FILES + file_bytes // WORKER_BYTES)
    step = max(1, min(BATCH_FILES, BATCH_BYTES * len(files) // max(file_bytes, 1)))
    log.info("reading %s images with %d process(es)", f"{len(files):,}", processes)
    sample = read_batch(files[:: max(1, len(files) // SAMPLE)], (1, 1, 1), False)
    size = image_size or (sample.odd[1] if sample.odd else (1, 1))
    resize = image_size is not None
    with workers(processes) as call:
        pixels, channels = _read(call, processes, files, (*size, sample.channels), step, resize, allocate)
        if channels > sample.channels:  # the sample was poorer than the rest
            del pixels  # before as much is allocated again
            pixels, _ = _read(call, processes, files, (*size, channels), step, resize, allocate)
    return pixels


def _read(
    call: Call,
    processes: int,
    files: Sequence[str],
    shape: tuple[int, int, int],
    step: int,
    resize: bool,
    allocate: Allocate,
) -> tuple[Pixels, int]:
    """Pixels of all files as images of `shape`, and the channels that the richest file needs."""
    pixels = Pixels(allocate((len(files), *shape)), np.zeros(len(files), DIGEST))

    def place(start: int) -> Batch:
        rows = slice(start, start + step)
        batch = _ask(call, files[rows], shape, resize)
        pixels.images[rows], pixels.digests[rows] = batch.images, batch.digests
        return batch._replace(images=batch.images[:0])

    channels, faults = 1, []
    step = max(1, min(step, BATCH_BYTES // prod(shape)))
    with ThreadPoolExecutor(processes) as threads:
        try:
            for batch in threads.map(place, range(0, len(files), step)):
                _refuse_other_size(batch.odd, shape)
                channels = max(channels, batch.channels)
                faults += batch.faults
        finally:
            threads.shutdown(cancel_futures=True)
    _refuse_faults(faults, len(files))
    return pixels, channels


def _ask(call: Call, files: Sequence[str], shape: tuple[int, int, int], resize: bool) -> Batch:
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
    named = listed([f"{file} ({reason})" for file, reason in faults])
    raise UsageError(
        f"every image must be readable: {len(faults):,} of {count:,} cannot be read: {named}; replace or remove them"
    )
