""".npz data sets."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.data.cache import image_digest
from pipeline.data.decode import from_pixels, resize_to
from pipeline.data.npz import read_npz, stack_splits
from pipeline.runtime.errors import UsageError

X, Y = np.arange(8 * 6 * 5, dtype=np.uint8).reshape(8, 6, 5), np.arange(8) % 2
VALID = {"x_train": X, "y_train": Y, "x_test": X[:2], "y_test": Y[:2]}


def write_npz(tmp_path, **changes):
    file = tmp_path / "data.npz"
    np.savez(file, **{name: array for name, array in {**VALID, **changes}.items() if array is not None})
    return file


def test_read_npz_takes_label_columns_and_whole_numbers_of_any_type(tmp_path):
    parts, classes = read_npz(write_npz(tmp_path, y_train=Y[:, None].astype(np.int16), x_train=X.astype(np.float32)))
    images, labels = parts["train"]
    assert labels.tolist() == Y.tolist() and images.dtype == np.uint8 and (images == X).all()
    assert classes == ("0", "1") and list(parts) == ["train", "test"]


def test_read_npz_under_other_names_says_which_it_has(tmp_path):
    np.savez(tmp_path / "data.npz", train_images=X, train_labels=Y, test_images=X, test_labels=Y)
    with pytest.raises(
        UsageError, match="has train_images, train_labels, test_images, test_labels instead of x_train, "
    ):
        read_npz(tmp_path / "data.npz")


def test_read_npz_takes_validation_split_and_class_names_if_given(tmp_path):
    parts, classes = read_npz(write_npz(tmp_path, x_val=X[:4], y_val=Y[:4], class_names=np.array(["cat", "dog\n"])))
    assert list(parts) == ["train", "validation", "test"] and classes == ("cat", r"dog\n")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y_test": None, "x_test": None}, "has no x_test, y_test"),
        ({"x_val": X}, "has no y_val"),
        ({"x_train": X[0]}, "images (n, h, w) or (n, h, w, c) with c of 1, 3 or 4 in x_train"),
        ({"x_train": np.zeros((8, 6, 5, 2), np.uint8)}, "has the shape (8, 6, 5, 2)"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "has the shape (0, 6, 5); add images"),
        ({"x_val": X[:0], "y_val": Y[:0]}, "has the shape (0, 6, 5); add images, or leave x_val and y_val out"),
        ({"x_train": np.zeros((8, 6, 5, 7), np.uint8)}, "leave all but 1, 3 or 4 of the 7 channels out"),
        (
            {"x_train": np.zeros((8, 6, 5, 2, 2), np.uint8)},
            "(8, 6, 5, 2, 2); give the array such a shape",
        ),
        ({"x_train": X * 1j}, "has the type complex128; save x_train.astype('uint8')"),
        ({"x_train": X / 255}, "pixels from 0 to 255, whole numbers, in x_train"),
        ({"x_train": X / 255}, "save as uint8: (x_train * 255).round().astype('uint8')"),
        ({"x_train": X / 2}, "has float64 from 0 to 119.5; scale and round them"),
        ({"x_train": X / 100 - 1}, "has float64 from -1 to 1.39; scale and round them"),
        ({"x_train": X / 200 - 1.1}, "has float64 from -1.1 to 0.095; scale and round them"),
        ({"x_train": X.astype(int) - 1}, "has int64 from -1 to 238; scale and round"),
        ({"x_train": X.astype(int) + 17}, "has int64 from 17 to 256; scale and save as uint8: x_train // 257"),
        ({"x_train": np.where(X > 7, np.nan, X)}, "has float64 from nan or infinity: 232 such values; replace them"),
        ({"x_train": np.where(X > 7, 1.0, 0.0)}, "has nothing above 1 in float64; multiply by 255"),
        ({"x_train": X > 7}, "has the type bool; save x_train.astype('uint8') * 255"),
        ({"y_train": Y[:5]}, "has 8 images in x_train and 5 labels in y_train"),
        ({"x_test": X[:2, :3]}, "images of one shape"),
        ({"y_train": Y / 1}, "integer labels (n,) or (n, 1) in y_train"),
        ({"y_train": np.eye(2)[Y]}, "for one-hot rows save y_train.argmax(axis=1)"),
        ({"y_train": Y * 2}, "has none of 1; number the classes without gaps"),
        ({"y_train": Y - 1}, "has labels from -1 to 0"),
        ({"y_test": Y[:2] + 1}, "has labels from 1 to 2, and the highest in y_train is 1; number the classes from 0"),
        ({"y_train": np.zeros((8, 2, 2), int)}, "for other numbers y_train.astype('int64')"),
        ({"y_test": Y[:2] * 0}, "has none of 1; number the classes without gaps, each in every split"),
        ({"y_train": Y * 0, "y_test": Y[:2] * 0}, "at least two classes: "),
        ({"y_train": Y * 0, "y_test": Y[:2] * 0}, "has one: 0; add images of another class"),
        ({"class_names": np.array(["cat", "cat"])}, "2 different strings in class_names"),
        ({"class_names": np.array([["cat"], ["dog"]])}, "has 2, cat, dog, for the labels from 0 to 1; name each"),
        ({"class_names": np.array(["cat"])}, "has 1, cat, for the labels from 0 to 1; name each class"),
        ({"class_names": np.array(["cat", "cat "])}, "are both cat; rename one"),
        ({"class_names": np.array(["cat", "dog"], object)}, "cannot be read: class_names holds Python objects"),
        ({"class_names": np.array(["cat", "dog"], object)}, "save class_names.astype(str)"),
        ({"class_names": np.array([b"cat", b"dog"])}, "has the type |S3; save class_names.astype(str)"),
        ({"y_train": np.array(["a", "b"])[Y]}, "numpy.searchsorted(class_names, y_train)"),
        ({"y_train": np.array(["a", "b"], object)[Y]}, "save y_train.astype('int64'); number names from 0"),
        ({"y_train": Y == 1}, "save y_train.astype('int64')"),
        ({"y_train": Y + 1, "y_test": Y[:2] + 1}, "save the labels of every split less 1"),
        ({"x_train": np.zeros((8, 3, 6, 5), np.uint8)}, "save x_train.transpose(0, 2, 3, 1)"),
        ({"x_train": np.zeros((6, 5, 3, 8), np.uint8)}, "save x_train.transpose(3, 0, 1, 2)"),
        ({"x_train": X.reshape(8, -1)}, "save x_train.reshape(-1, h, w, c)"),
        ({"x_train": X[..., None, None]}, "save numpy.squeeze(x_train, axis=3)"),
        ({"x_train": X.astype(np.uint16) * 257}, "x_train // 257 where white is 65,535"),
        ({"x_train": X / 127.5 - 1}, "((x_train + 1) * 127.5).round()"),
        ({"x_train": np.array([{}, []], object)}, "holds Python objects, not numbers"),
    ],
)
def test_read_npz_of_arrays_that_do_not_fit_raises_one_line(tmp_path, changes, words):
    file = write_npz(tmp_path, **changes)
    with pytest.raises(UsageError) as error:
        read_npz(file)
    message = str(error.value)
    assert words in message and str(file) in message and message.isprintable()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"text", b"\x93NUMPY"])
def test_read_npz_of_another_file_raises(tmp_path, content):
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read"):
        read_npz(tmp_path / "data.npz")


def test_read_npz_of_an_archive_larger_than_memory_raises_before_reading(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    np.savez_compressed(tmp_path / "data.npz", **VALID | {"x_train": np.zeros((8, 600, 500), np.uint8)})
    with pytest.raises(UsageError, match="needs memory for all of it: .*data.npz unpacks to 0.0 GB where 0.0 GB"):
        read_npz(tmp_path / "data.npz")


def test_read_npz_of_an_archive_with_a_flipped_bit_raises(tmp_path):
    content = bytearray(write_npz(tmp_path).read_bytes())
    content[200] ^= 1  # in the pixels of the first array
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(UsageError, match="CRC"):
        read_npz(tmp_path / "data.npz")


@pytest.mark.parametrize("channels", [(), (3,)])
def test_stack_splits_joins_training_validation_and_test_images(channels):
    def part(first, count):
        return np.stack([np.full((6, 5, *channels), number, np.uint8) for number in range(first, first + count)])

    parts = {"test": (part(20, 2), Y[:2]), "validation": (part(10, 3), Y[:3]), "train": (part(0, 4), Y[:4])}
    stacked = stack_splits(parts, ("a", "b"), None, lambda shape: np.zeros(shape, np.uint8), resize="stretch")
    assert stacked.images.shape == (9, 6, 5, *(channels or (1,))) and stacked.sizes == (4, 3, 2)
    assert stacked.images[:, -1, -1, -1].tolist() == [0, 1, 2, 3, 10, 11, 12, 20, 21]
    assert stacked.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 0, 1] and stacked.labels.dtype == np.int64
    assert stacked.digests.tolist() == [image_digest(image) for image in stacked.images]
    assert stacked.classes == ("a", "b") and stacked.files.tolist() == [b""] * 9
    del parts["validation"]
    assert stack_splits(parts, ("a", "b"), None, np.zeros, resize="stretch").sizes == (4, 0, 2)


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_stack_splits_resizes_each_image_as_it_is_told(resize):
    parts = {"train": (X, Y)}
    stacked = stack_splits(parts, ("a", "b"), (4, 4), lambda shape: np.zeros(shape, np.uint8), resize=resize)
    expected = [resize_to(from_pixels(image[..., None]), (4, 4, 1), resize) for image in X]
    assert stacked.images.shape == (8, 4, 4, 1) and (stacked.images == expected).all()
