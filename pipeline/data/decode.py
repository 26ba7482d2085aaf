"""One image file -> its pixels: 8 bits, upright, first frame, as many channels as it really has.

Served models contain a copy of this file, so it imports only Pillow and NumPy.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# What Pillow may open. Its other plugins are left out: some start other programs (EPS), some recognize a format by
# next to nothing (TGA), and all are code that reads foreign files.
FORMATS = ("JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP", "PPM")
FORMAT_NAMES = "JPEG, PNG, TIFF, GIF, WebP, BMP or PNM"
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's mode
MAX_SIDE = 65_535  # pixels; Pillow needs memory and time for each row, however short
# The 8-bit value of 4,095 of 65,535, rounded up: where no 16-bit file has more, the files use 12 bits.
MAX_12_BITS = 16
BLOCK_PIXELS = 1 << 20  # of an image of 16 bits that are scaled at once
PHOTOMETRIC = 262  # a TIFF tag; 0: white is zero


def read_image(file: str | IO[bytes]) -> Image.Image:
    """Return an image of mode L, RGB or RGBA, rotated by its EXIF orientation; RGBA only if a pixel is transparent.

    Raises:
        Exception: Whatever Pillow's decoders raise for a damaged file; see `describe_error`.
    """
    with open_image(file) as opened:
        return load_pixels(opened)


@contextmanager
def open_image(file: str | IO[bytes]) -> Iterator[Image.Image]:
    """Open an image without decoding its pixels; its size is within the limits.

    Raises:
        Exception: As `read_image` does.
    """
    if isinstance(file, str) and os.path.isfile(file) and not os.path.getsize(file):
        raise OSError("the file is empty")
    with Image.open(file, formats=FORMATS) as image:
        _check_size(image)
        _check_decoder(image)
        yield image


def load_pixels(image: Image.Image) -> Image.Image:
    """Decode an opened image; see `read_image`."""
    is_gray_16_bits, is_12_bits = image.mode.startswith("I"), _raw_mode(image) == "I;12"
    inverted = is_gray_16_bits and image.format == "TIFF" and _tiff_tag(image, PHOTOMETRIC) == 0
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if is_gray_16_bits:
        return _to_8_bits(image, white=4_095 if is_12_bits else 65_535, inverted=inverted)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.has_transparency_data:
        with_alpha = _convert("RGBA", image)
        least, _ = with_alpha.getchannel("A").getextrema()
        if least != 255:
            return with_alpha
    return _convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB", image)


def has_16_bits(opened: Image.Image) -> bool:
    """Return whether the file of an image that is not decoded yet has more than 8 bits a channel."""
    return opened.mode.startswith("I") or ";16" in _raw_mode(opened)


def highest_value(image: Image.Image) -> int:
    """Return the highest value of an image of mode L, RGB or RGBA, from 0 to 255, transparency aside."""
    return int(np.asarray(image if image.mode == "L" else image.convert("RGB")).max())


def describe_12_bits(highest: int | None) -> str:
    """Return what is wrong with files of 16 bits that use 12, as those of some cameras and scanners; empty if nothing.

    Such files would be nearly black. A single one may be a dark picture: all files of a set are judged together.

    Args:
        highest: The `highest_value` in all files that have 16 bits; None if there is no such file.
    """
    if highest is None or not 0 < highest <= MAX_12_BITS:
        return ""
    return (
        "images of 16 bits must use them: all of these are nearly black, as if of 12 bits, with no value above a "
        "fifteenth of 65,535; multiply their pixels by 16, or save them with 8 bits"
    )


def image_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of an image."""
    return image.height, image.width


def from_pixels(pixels: np.ndarray) -> Image.Image:
    """Return pixels (h, w, c) uint8 of 1, 3 or 4 channels as an image of mode L, RGB or RGBA."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def resize_to(image: Image.Image, shape: tuple[int, int, int], resize: str) -> np.ndarray:
    """Return an image as pixels of `shape` (h, w, c), resized by Pillow's bilinear filter, which antialiases.

    Args:
        image: Of mode L, RGB or RGBA.
        shape: Of the pixels.
        resize: stretch; crop, which fits the shorter side and cuts the other one at both ends; or pad, which fits the
            longer side and leaves black, transparent if there is an alpha channel, on both sides of the image.
    """
    height, width, channels = shape
    image = _convert(MODES[channels], image)
    if image_size(image) != (height, width):
        image = RESIZES[resize](image, (width, height))
    return np.asarray(image).reshape(shape)


def describe_error(error: Exception) -> str:
    """Return in words why an image cannot be read."""
    if isinstance(error, UnidentifiedImageError):
        return f"not a {FORMAT_NAMES} image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _stretch(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return an image of `size` (width, height), like the two functions below."""
    return image.resize(size, Image.Resampling.BILINEAR)


def _crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return ImageOps.fit(image, size, Image.Resampling.BILINEAR)


def _pad(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    # not ImageOps.pad, which makes an image without pixels of a long and narrow one, and raises an error
    scale = min(side / own for side, own in zip(size, image.size, strict=True))
    width, height = (max(1, round(scale * own)) for own in image.size)
    padded = Image.new(image.mode, size)
    padded.paste(_stretch(image, (width, height)), (round((size[0] - width) / 2), round((size[1] - height) / 2)))
    return padded


RESIZES = {"stretch": _stretch, "crop": _crop, "pad": _pad}


def _check_size(image: Image.Image) -> None:
    """Raise an error above Pillow's limit of pixels; Pillow itself only warns up to twice the limit."""
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > limit:
        raise Image.DecompressionBombError(
            f"Image size ({pixels} pixels) exceeds limit of {limit} pixels, could be decompression bomb DOS attack."
        )
    if max(image.size) > MAX_SIDE:
        raise ValueError(f"each side must have at most {MAX_SIDE:,} pixels, got {image.width:,} x {image.height:,}")


def _check_decoder(image: Image.Image) -> None:
    """Raise an error for the PNM files that Pillow decodes in Python, at some million numbers a minute."""
    if any(tile.codec_name in ("ppm", "ppm_plain") for tile in getattr(image, "tile", [])):
        raise ValueError("PNM files must be binary (P4, P5 or P6) with 255 or 65,535 as white; save it as PNG")


def _raw_mode(image: Image.Image) -> str:
    """Return how an image that is not decoded yet stores its pixels, in Pillow's words: RGB;16B."""
    tiles = getattr(image, "tile", [])  # what Pillow's decoders are to read; WebP's needs none
    if not tiles:
        return image.mode
    arguments = tiles[0].args
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _tiff_tag(image: Image.Image, tag: int) -> object:
    tags: dict[int, object] = getattr(image, "tag_v2", {})
    return tags.get(tag)


def _convert(mode: str, image: Image.Image) -> Image.Image:
    # Pillow would copy an image that has the mode already.
    return image if image.mode == mode else image.convert(mode)


def _to_8_bits(image: Image.Image, *, white: int, inverted: bool) -> Image.Image:
    """Scale grayscale of more than 8 bits, 0 to `white`, to 0 to 255."""
    wide = np.asarray(image)  # (h, w) uint16 or int32
    low, high = int(wide.min()), int(wide.max())
    if low < 0 or high > white:
        raise ValueError(f"its pixels must be from 0 to {white:,}, got {low:,} to {high:,}; save it with 8 or 16 bits")
    scaled = ((np.arange(white + 1) * 255 + white // 2) // white).astype(np.uint8)
    if inverted:
        scaled = scaled[::-1]
    narrow = np.empty(wide.shape, np.uint8)
    # Some rows at a time, because NumPy makes 64-bit numbers of the indices.
    step = 1 + BLOCK_PIXELS // wide.shape[1]
    for start in range(0, len(wide), step):
        narrow[start : start + step] = scaled[wide[start : start + step]]
    return Image.fromarray(narrow)
