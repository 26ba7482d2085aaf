"""Small images, image files and folders of them."""

import os

import numpy as np
from PIL import Image

GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOR = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)


def save_image(folder, image, name="a.png", **options):
    """Write a PIL image to a file of the folder, and return the file's path."""
    file = str(folder / name)
    image.save(file, **options)
    return file


def random_image(*seed, size=(6, 5)):
    """Return a PIL image of random pixels; size is (height, width)."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def image_folder(root, classes=("cat", "dog"), each=4, size=(6, 5)):
    """Write `each` random images to a folder of each class below the root, and return the root."""
    for label, name in enumerate(classes):
        folder = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(folder, exist_ok=True)
        for number in range(each):
            random_image(label, number, size=size).save(
                os.path.join(folder, b"%d.png" % number).decode("utf-8", "surrogateescape")
            )
    return root
