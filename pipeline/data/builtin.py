"""Built-in data sets: scikit-learn's digits, and those that Keras downloads."""

import importlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial

import numpy as np

from pipeline.data.cache import DecodedImages, cache_key, load_cached, resize_key
from pipeline.data.npz import Part, stack_splits
from pipeline.runtime.errors import UsageError
from pipeline.runtime.imports import slow_imports
from pipeline.runtime.text import printable

TEN_DIGITS = tuple("0123456789")
CIFAR10 = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
# The fine labels.
CIFAR100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
)
CLASSES = {
    "digits": TEN_DIGITS,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "mnist": TEN_DIGITS,
    "fashion_mnist": FASHION,
}
# MD5 digests as the authors of the data set publish them, because Keras checks none of these.
FASHION_FILES = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
# As in keras.datasets.fashion_mnist.
FASHION_FOLDER = os.path.join("datasets", "fashion-mnist")
FASHION_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
# A server that is silent for so long has failed; Keras itself would wait for ever.
SOCKET_TIMEOUT_SECONDS = 30

log = logging.getLogger(__name__)


def load_builtin(name: str, image_size: tuple[int, int] | None, resize: str) -> DecodedImages:
    """Return a data set of CLASSES; scikit-learn or Keras is imported only if it is not in the cache."""
    read = _read_digits if name == "digits" else partial(_download, name)
    return load_cached(
        cache_key(name, resize_key(image_size, resize)),
        lambda allocate: stack_splits(read(), CLASSES[name], image_size, allocate, resize=resize),
    )


def describe_source(name: str) -> str:
    """Return which function a data set of CLASSES is read with."""
    return "scikit-learn load_digits" if name == "digits" else f"keras.datasets.{name}"


def _read_digits() -> dict[str, Part]:
    from sklearn.datasets import load_digits

    digits = load_digits()  # 8 x 8 pixels from 0 to 16
    return {"train": (np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target)}


def _download(name: str) -> dict[str, Part]:
    with slow_imports():
        datasets = importlib.import_module(f"keras.datasets.{name}")
    log.info("%s is read by Keras, which downloads it the first time", name)
    try:
        with _socket_timeout(), redirect_stdout(sys.stderr):
            if name == "fashion_mnist":
                _fetch_fashion()
            train, test = datasets.load_data()
    except Exception as error:  # Keras raises Exception itself if a download fails
        raise UsageError(
            f"{name} must be downloaded once by Keras, and that failed: {printable(error)}; connect to the network and "
            "try again, or give a folder of class folders or an .npz file instead of the name"
        ) from error
    return {part: (images, labels.reshape(-1)) for part, (images, labels) in (("train", train), ("test", test))}


def _fetch_fashion() -> None:
    """Download the files that Keras reads, and again if they are damaged."""
    get_file = importlib.import_module("keras.utils").get_file
    for file, digest in FASHION_FILES.items():
        get_file(file, FASHION_URL + file, cache_subdir=FASHION_FOLDER, file_hash=digest, hash_algorithm="md5")


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """Give new sockets a timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SOCKET_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
