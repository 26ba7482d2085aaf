"""Built-in data sets."""

import importlib.util
import socket
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.training import BUILTIN_DATASETS
from pipeline.data import builtin
from pipeline.data.builtin import CLASSES, load_builtin
from pipeline.runtime.errors import UsageError

PARTS = [("train-images", 3), ("train-labels", 1), ("t10k-images", 3), ("t10k-labels", 1)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def default_timeout():
    """Return the function that sets the timeout of new sockets, which ends with the test."""
    before = socket.getdefaulttimeout()
    yield socket.setdefaulttimeout
    socket.setdefaulttimeout(before)


def replace_keras_dataset(monkeypatch, name, load_data):
    """Replace Keras' own `load_data`, without importing Keras."""
    module = types.SimpleNamespace(load_data=load_data)
    for parent in ("keras", "keras.datasets"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, f"keras.datasets.{name}", module)


def test_classes_are_known_of_all_data_sets_that_the_settings_name():
    assert set(CLASSES) == set(BUILTIN_DATASETS)


@pytest.mark.parametrize(("name", "shape"), [("cifar100", (3, 32, 32, 3)), ("mnist", (3, 28, 28))])
def test_load_builtin_downloads_once_and_flattens_the_labels(monkeypatch, default_timeout, name, shape):
    timeouts = []
    default_timeout(123)

    def load_data():
        timeouts.append(socket.getdefaulttimeout())
        part = np.full(shape, 7, np.uint8), np.arange(3).reshape((3, 1) if len(shape) == 4 else (3,))
        return part, part

    replace_keras_dataset(monkeypatch, name, load_data)
    for _ in range(2):
        decoded = load_builtin(name, None, "stretch")
        assert decoded.images.shape == (6, *(*shape, 1)[1:4]) and decoded.labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert decoded.sizes == (3, 0, 3) and decoded.classes == CLASSES[name]
    assert timeouts == [30] and socket.getdefaulttimeout() == 123  # a silent server is not waited for


def test_load_builtin_after_failed_download_raises_one_line_with_reason_and_remedy(monkeypatch):
    def load_data():
        raise Exception("URL fetch failure on https://host/x.tgz:\nNone -- no route")  # as Keras does

    replace_keras_dataset(monkeypatch, "cifar10", load_data)
    with pytest.raises(UsageError) as error:
        load_builtin("cifar10", None, "stretch")
    message = str(error.value)
    assert message.startswith("cifar10 must be downloaded once by Keras") and "no route" in message
    assert message.isprintable() and "a folder of class folders" in message


def test_load_builtin_checks_the_md5_digests_of_fashion_mnist(monkeypatch):
    downloads = []
    part = np.zeros((3, 28, 28), np.uint8), np.arange(3)
    replace_keras_dataset(monkeypatch, "fashion_mnist", lambda: (part, part))

    def get_file(file, address, *, cache_subdir, file_hash, hash_algorithm):
        assert address.endswith(f"/{file}") and cache_subdir.endswith("fashion-mnist") and hash_algorithm == "md5"
        downloads.append((file, len(file_hash)))

    monkeypatch.setitem(sys.modules, "keras.utils", types.SimpleNamespace(get_file=get_file))
    load_builtin("fashion_mnist", None, "stretch")
    assert downloads == [(f"{part}-idx{n}-ubyte.gz", 32) for part, n in PARTS]


def test_fashion_mnist_is_downloaded_from_where_keras_finds_it_to_where_keras_looks():
    keras = Path(importlib.util.find_spec("keras").submodule_search_locations[0])
    source = (keras / "src" / "datasets" / "fashion_mnist.py").read_text()
    assert f'"{builtin.FASHION_URL}"' in source
    assert all(f'"{part}"' in source for part in (*builtin.FASHION_FILES, *Path(builtin.FASHION_FOLDER).parts))


def test_load_builtin_with_image_size_resizes_the_images(monkeypatch):
    monkeypatch.setattr(builtin, "_read_digits", lambda: {"train": (np.full((4, 8, 8), 200, np.uint8), np.arange(4))})
    assert load_builtin("digits", (12, 16), "stretch").images.shape == (4, 12, 16, 1)
    assert (load_builtin("digits", (12, 16), "stretch").images == 200).all()


def test_load_builtin_caches_each_way_of_resizing_alone(monkeypatch):
    monkeypatch.setattr(builtin, "_read_digits", lambda: {"train": (np.full((4, 8, 8), 200, np.uint8), np.arange(4))})
    lowest = {resize: load_builtin("digits", (6, 16), resize).images.min() for resize in ("stretch", "pad", "crop")}
    assert lowest == {"stretch": 200, "pad": 0, "crop": 200}


def test_classes_are_as_many_and_different_as_in_each_data_set():
    counts = {name: len(set(classes)) for name, classes in CLASSES.items()}
    assert counts == {"digits": 10, "cifar10": 10, "cifar100": 100, "mnist": 10, "fashion_mnist": 10}
