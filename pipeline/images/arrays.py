"""Arrays of pixels and labels by split -> one decoded data set, stretched where that is asked for."""

import numpy as np
from PIL import Image

from pipeline.images.decoded import DIGEST, Allocate, Decoded, image_digest
from pipeline.images.decoding import fitted

Part = tuple[np.ndarray, np.ndarray]  # images (n, h, w) or (n, h, w, c) uint8, labels (n,)
PARTS = ("train", "validation", "test")


def gather(
    parts: dict[str, Part], classes: tuple[str, ...], image_size: tuple[int, int] | None, allocate: Allocate
) -> Decoded:
    """Join parts, whose images have one shape, in the order of training, validation and test."""
    present = [parts[name] for name in PARTS if name in parts]
    height, width, channels = (*present[0][0].shape[1:], 1)[:3]
    shape = (*(image_size or (height, width)), channels)
    count = sum(len(labels) for _, labels in present)
    images, digests = allocate((count, *shape)), np.zeros(count, DIGEST)
    row = 0
    for pixels, _ in present:
        for image in pixels.reshape(-1, height, width, channels):
            images[row] = image if image.shape == shape else _stretched(image, shape)
            digests[row] = image_digest(images[row])
            row += 1
    labels = np.concatenate([labels for _, labels in present]).astype(np.int64)
    train, validation, test = (len(parts[name][1]) if name in parts else 0 for name in PARTS)
    return Decoded(images, digests, labels, classes, (train, validation, test))


def _stretched(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    return fitted(Image.fromarray(image[..., 0] if shape[2] == 1 else image), shape)
