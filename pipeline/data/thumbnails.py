"""Small pictures of images that are known by their digests, from the cache of decoded data sets."""

import re
from collections.abc import Collection
from io import BytesIO

import numpy as np

from pipeline.data.cache import cached_data_sets
from pipeline.data.decode import from_pixels

# the 8 bytes of a digest by which a table of predictions names an image
DIGEST_PREFIX = re.compile(r"[0-9a-f]{16}")
PIXELS = 96  # of a picture's longer side at most


def find_thumbnails(images: Collection[str]) -> dict[str, bytes]:
    """Return PNG files of the images that any data set in the cache has.

    No data set is decoded for it.

    Args:
        images: First 16 hexadecimal digits of the digest of each image's pixels; other texts are ignored.

    Returns:
        The files, by these digits.
    """
    wanted = {int(image, 16): image for image in images if DIGEST_PREFIX.fullmatch(image)}
    found: dict[str, bytes] = {}
    if not wanted:
        return found
    numbers = np.fromiter(wanted, np.uint64)
    for data in cached_data_sets():
        digests = np.asarray(data.digests).view(np.uint8).reshape(-1, data.digests.itemsize)  # (n, 16)
        prefixes = np.ascontiguousarray(digests[:, :8]).view(">u8").ravel().astype(np.uint64)
        for row in np.flatnonzero(np.isin(prefixes, numbers)):
            found.setdefault(wanted[int(prefixes[row])], _to_png(data.images[row]))
    return found


def _to_png(pixels: np.ndarray) -> bytes:
    """Return an image (h, w, c) as a PNG file that is no larger than a thumbnail."""
    image = from_pixels(np.asarray(pixels))
    image.thumbnail((PIXELS, PIXELS))
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
