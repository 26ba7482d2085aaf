"""One image file -> its pixels: 8 bits, upright, first frame, as many channels as it really has.

Served models contain a copy of this file, so it imports only Pillow and NumPy.
"""

from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's mode


def read_image(file: str | IO[bytes]) -> Image.Image:
    """Return an image of mode L, RGB or RGBA, rotated by its EXIF orientation; RGBA only if a pixel is transparent.

    Raises:
        Exception: Whatever Pillow's decoders raise for a damaged file; see `describe_error`.
    """
    with Image.open(file, formats=FORMATS) as image:
        _check_not_bomb(image)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        return _to_8_bits(image)
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        if np.asarray(with_alpha.getchannel("A")).min() < 255:
            return with_alpha
    return _convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB", image)


def image_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of an image."""
    return image.height, image.width


def resize_to(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """Return an image as pixels of `shape` (h, w, c): resized, bilinear, antialiased when it shrinks."""
    height, width, channels = shape
    image = _convert(MODES[channels], image)
    if image_size(image) != (height, width):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(shape)


def describe_error(error: Exception) -> str:
    """Return in words why an image cannot be read."""
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, BMP or WebP image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _check_not_bomb(image: Image.Image) -> None:
    """Raise an error above Pillow's limit of pixels; Pillow itself only warns up to twice the limit."""
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > limit:
        raise Image.DecompressionBombError(
            f"Image size ({pixels} pixels) exceeds limit of {limit} pixels, could be decompression bomb DOS attack."
        )


def _convert(mode: str, image: Image.Image) -> Image.Image:
    # Pillow would copy an image that has the mode already.
    return image if image.mode == mode else image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale grayscale of 16 bits, 0 to 65,535, to 0 to 255."""
    wide = np.clip(np.asarray(image), 0, 65_535).astype(np.uint32)
    return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
