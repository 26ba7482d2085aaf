"""Image files -> one array of their pixels, and what is wrong with those that cannot be read."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.images.decoded import DIGEST, image_digest
from pipeline.images.decoding import MODES, fitted, read, reason, size

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
CHANNELS = {mode: channels for channels, mode in MODES.items()}


class Batch(NamedTuple):
    """What came of reading b files for a common (h, w, c); rows of files that do not fit it are zero."""

    images: np.ndarray  # (b, h, w, c) uint8
    digests: np.ndarray  # (b,) DIGEST
    channels: int  # that the richest of the files needs: 1, 3 or 4
    odd: tuple[str, tuple[int, int]] | None  # a file of another size, and its (height, width)
    faults: list[tuple[str, str]]  # (file, reason) of those that cannot be read


def read_batch(files: Sequence[str], shape: tuple[int, int, int], resize: bool) -> Batch:
    """Read files into one array of `shape` (h, w, c), stretching them to it where `resize` is set."""
    images = np.zeros((len(files), *shape), np.uint8)
    digests = np.zeros(len(files), DIGEST)
    channels = 1
    odd: tuple[str, tuple[int, int]] | None = None
    faults: list[tuple[str, str]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged EXIF block, a palette with odd transparency: the pixels are fine
        for row, file in enumerate(files):
            try:
                image = read(file)
            except Exception as error:  # noqa: BLE001 - decoders raise whatever a damaged file leads them into
                faults.append((file, reason(error)))
                continue
            channels = max(channels, CHANNELS[image.mode])
            if resize or size(image) == shape[:2]:
                images[row] = fitted(image, shape)
                digests[row] = image_digest(images[row])
            else:
                odd = (file, size(image))
    return Batch(images, digests, channels, odd, faults)
