"""Pictures of images in the cache of decoded data sets."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pipeline.data.cache import DecodedImages, cache_key, image_digest, load_cached
from pipeline.data.thumbnails import PIXELS, find_thumbnails


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Put a data set of grey images and one of large coloured ones into an empty cache; return their images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    random = np.random.default_rng(0)
    sets = [random.integers(0, 256, shape, np.uint8) for shape in ((3, 8, 8, 1), (2, 2 * PIXELS, PIXELS, 3))]
    for images in sets:
        digests = np.array([image_digest(image) for image in images], "S16")
        labels = np.zeros(len(images), np.int64)
        files = np.zeros(len(images), "S1")
        decoded = DecodedImages(images, digests, labels, files, ("cat",), (len(images), 0, 0))
        load_cached(cache_key(images.shape), lambda allocate, decoded=decoded: copy(decoded, allocate))
    return sets


def copy(decoded, allocate):
    images = allocate(decoded.images.shape)
    images[:] = decoded.images
    return replace(decoded, images=images)


def name(image):
    return image_digest(image).hex()[:16]


def test_find_thumbnails_finds_images_of_any_cached_data_set_by_their_digests(cached):
    grey, large = cached[0][2], cached[1][0]
    found = find_thumbnails([name(grey), name(large), "0" * 16])
    assert found.keys() == {name(grey), name(large)}
    assert np.array_equal(np.asarray(Image.open(BytesIO(found[name(grey)]))), grey[..., 0])
    assert Image.open(BytesIO(found[name(large)])).size == (PIXELS // 2, PIXELS)


@pytest.mark.parametrize("images", [[], ["../etc", "", "0x" + "1" * 14]])
def test_find_thumbnails_ignores_what_is_no_digest(cached, images):
    assert find_thumbnails(images) == {}


def test_find_thumbnails_without_a_cache_finds_none(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    assert find_thumbnails(["0" * 16]) == {}
