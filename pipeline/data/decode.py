"""One image -> its pixels: 8 bits, upright, first frame, as many channels as it really has.

Registered models carry a copy of this file, so it needs Pillow and NumPy alone.
"""

from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's mode


def read_image(file: str | IO[bytes]) -> Image.Image:
    """Image of mode L, RGB or RGBA, turned as its EXIF orientation says; RGBA only where a pixel is see-through.

    Raises:
        Exception: whatever a damaged file leads Pillow's decoders into; see `describe_error`.
    """
    with Image.open(file, formats=FORMATS) as image:
        _refuse_bomb(image)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        return _eight_bits(image)
    if image.has_transparency_data:
        see_through = image.convert("RGBA")
        if np.asarray(see_through.getchannel("A")).min() < 255:
            return see_through
    return _in_mode("L" if image.mode in ("1", "L", "LA", "La") else "RGB", image)


def image_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of an image."""
    return image.height, image.width


def resize_to(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """Pixels of `shape` (h, w, c) from an image: stretched to h and w, bilinear, antialiased where it shrinks."""
    height, width, channels = shape
    image = _in_mode(MODES[channels], image)
    if image_size(image) != (height, width):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(shape)


def describe_error(error: Exception) -> str:
    """Why an image cannot be read, in words."""
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, BMP or WebP image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _refuse_bomb(image: Image.Image) -> None:
    """Pillow itself only warns of what is not yet twice its limit."""
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > limit:
        raise Image.DecompressionBombError(
            f"Image size ({pixels} pixels) exceeds limit of {limit} pixels, could be decompression bomb DOS attack."
        )


def _in_mode(mode: str, image: Image.Image) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # Pillow would copy


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grayscale of 16 bits, 0 to 65,535, brought to 0 to 255."""
    wide = np.clip(np.asarray(image), 0, 65_535).astype(np.uint32)
    return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
