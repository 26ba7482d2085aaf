"""What a JPEG compression costs `baseline`, on a proxy: `python experiments/benchmarks/jpeg.py <CIFAR-10 folder>`.

The folder's images are JPEG files already, and what that cost cannot be told without the original pixels. What one more
compression costs can: it is done at the same quality, with colours at half the resolution, on a grid of blocks that
does not fall on the first one's, which would change little. Training and validation images are both compressed; test
images have no part in it.
"""

import argparse
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import proxy
from PIL import Image

from pipeline.data import Data, Split
from pipeline.machine import device as devices

HERE = Path(__file__).parent
QUALITY = 80
SHIFT = 5  # pixels between the two grids: odd, so that colours are halved over other pairs of pixels
BLOCK = 16  # pixels on a side of what JPEG compresses as one, with colours at half the resolution


def compressed(image: np.ndarray) -> np.ndarray:
    """Compress an image (h, w, 3) uint8 once, blocks beginning SHIFT pixels before it; its borders are mirrored."""
    height, width = image.shape[:2]
    padding = [(SHIFT, -(SHIFT + side) % BLOCK) for side in (height, width)]
    file = io.BytesIO()
    padded = np.pad(image, [*padding, (0, 0)], mode="symmetric")
    Image.fromarray(padded).save(file, format="JPEG", quality=QUALITY, subsampling="4:2:0")
    return np.asarray(Image.open(file))[SHIFT : SHIFT + height, SHIFT : SHIFT + width]


def compressed_split(split: Split) -> Split:
    """A split with its images compressed; it has their rows alone."""
    images, labels = split.take(slice(None))
    rows = np.arange(len(split))
    return Split(np.stack([compressed(image) for image in images]), labels, split.image_digests[split.rows], rows)


def compressed_data(data: Data) -> Data:
    """Data whose training and validation images are compressed."""
    return replace(data, train=compressed_split(data.train), validation=compressed_split(data.validation))


VARIANTS = {"as they are": lambda data: data, "compressed again": compressed_data}


def main() -> None:
    """Train what is missing and print the best validation accuracy of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="CIFAR-10 as a folder of images")
    parser.add_argument("--csv", type=Path, default=HERE / "jpeg.csv")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    device = devices.find("one")

    def train(variant: str, seed: int) -> pd.DataFrame:
        return proxy.history("baseline", {"dataset": asked.dataset, "seed": seed}, device, VARIANTS[variant])

    runs = proxy.kept(asked.csv, VARIANTS, asked.seeds, train)
    best = 100 * runs.groupby(["variant", "seed"])["val_accuracy"].max()
    print(best.unstack("seed").round(2).to_string())


if __name__ == "__main__":
    main()
