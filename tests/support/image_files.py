"""Small images, and how tests write them to files."""

import numpy as np

GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOR = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)


def saved(folder, image, name="a.png", **options):
    """The path of a file with this PIL image."""
    file = str(folder / name)
    image.save(file, **options)
    return file
