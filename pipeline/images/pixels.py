"""One image file -> its pixels: 8 bits, upright, first frame, as many channels as it really has."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.images.decoded import DIGEST, image_digest

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's mode
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
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for row, file in enumerate(files):
            try:
                image = read(file)
            except Exception as error:  # noqa: BLE001 - decoders raise whatever a damaged file leads them into
                faults.append((file, _reason(error)))
                continue
            channels = max(channels, CHANNELS[image.mode])
            if resize or size(image) == shape[:2]:
                images[row] = fitted(image, shape)
                digests[row] = image_digest(images[row])
            else:
                odd = (file, size(image))
    return Batch(images, digests, channels, odd, faults)


def read(file: str) -> Image.Image:
    """Image of mode L, RGB or RGBA, turned as its EXIF orientation says; RGBA only where a pixel is see-through."""
    with Image.open(file, formats=FORMATS) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        return _eight_bits(image)
    if image.has_transparency_data:
        see_through = image.convert("RGBA")
        if np.asarray(see_through.getchannel("A")).min() < 255:
            return see_through
    return _in_mode("L" if image.mode in ("1", "L", "LA", "La") else "RGB", image)


def size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of an image."""
    return image.height, image.width


def fitted(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """Pixels of `shape` (h, w, c) from an image: stretched to h and w, bilinear, antialiased where it shrinks."""
    height, width, channels = shape
    image = _in_mode(MODES[channels], image)
    if size(image) != (height, width):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(shape)


def _in_mode(mode: str, image: Image.Image) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # Pillow would copy


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grayscale of 16 bits, 0 to 65,535, brought to 0 to 255."""
    wide = np.clip(np.asarray(image), 0, 65_535).astype(np.uint32)
    return Image.fromarray(((wide + 128) // 257).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, BMP or WebP image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
