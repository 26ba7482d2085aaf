"""Why `baseline` falls short of the Keras example: `python experiments/benchmarks/gap.py <CIFAR-10 folder>`.

The folder's images are JPEG files, and what that cost cannot be told without the original pixels. So a proxy is trained
as it is; as the example trains; in float32; with batch norm's averages over fewer steps; and on images that are
compressed once more, at the same quality, with colours at half the resolution, on a grid of blocks that does not fall
on the first one's, which would change little. Test images have no part in it.
"""

import argparse
import io
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import proxy
import tensorflow as tf
from PIL import Image

from pipeline.config import Config, read_recipe
from pipeline.data import Data, Split
from pipeline.fit import stock
from pipeline.loading import load_data
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


def as_the_example(dataset: str, seed: int) -> pd.DataFrame:
    """Train with nothing of this project's but data and network: the example's batches, changes, optimizer and loss."""
    config = Config.build(read_recipe("baseline") | proxy.PROXY | {"dataset": dataset, "seed": seed})
    data = load_data(config)
    keras.utils.set_random_seed(seed)
    model = stock(config, data)
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=1e-4)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    images, labels = data.train.take(
        np.random.default_rng(seed).permutation(len(data.train))
    )  # the example's are mixed
    flip = keras.layers.RandomFlip("horizontal")
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(1280).batch(128)
    changed = batches.map(lambda images, labels: (flip(images, training=True), labels)).prefetch(tf.data.AUTOTUNE)
    validation = tf.data.Dataset.from_tensor_slices(data.validation.take(slice(None))).batch(128)
    told = model.fit(changed, validation_data=validation, epochs=config.epochs, shuffle=False, verbose=0).history
    return proxy.rows(told)


CHANGES: dict[str, dict[str, object]] = {
    "baseline": {},
    "compressed again": {},
    "float32": {"precision": "float32"},
    "batch_norm_momentum 0.9": {"batch_norm_momentum": 0.9},
}
EXAMPLE = "as the example trains"


def main() -> None:
    """Train what is missing and print the best validation accuracy of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="CIFAR-10 as a folder of images")
    parser.add_argument("--csv", type=Path, default=HERE / "gap.csv")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[*CHANGES, EXAMPLE], default=[*CHANGES, EXAMPLE])
    asked = parser.parse_args()
    device = devices.find("one")

    def train(variant: str, seed: int) -> pd.DataFrame:
        if variant == EXAMPLE:
            return as_the_example(asked.dataset, seed)
        changes = {"dataset": asked.dataset, "seed": seed} | CHANGES[variant]
        change = compressed_data if variant == "compressed again" else lambda data: data
        return proxy.history("baseline", changes, device, change)

    runs = proxy.kept(asked.csv, asked.only, asked.seeds, train)
    best = 100 * runs.groupby(["variant", "seed"])["val_accuracy"].max()
    print(best.unstack("seed").round(2).to_string())


if __name__ == "__main__":
    main()
