"""Recognizing the folders of splits."""

from itertools import product

import pytest

from pipeline.data.layout import descend, find_splits, name_splits, parse_split
from pipeline.runtime.errors import UsageError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def grid(*levels):
    """Return the path of an image below each combination of folders."""
    return ["/".join([*path, "1.png"]) for path in product(*levels)]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("TRAIN", "Test"),
        ("training_set", "test_set"),
        ("train_images", "test_images"),
        ("TrainingData", "TestData"),
        ("trainset", "testset"),
        ("Train Set", "Test Set"),
        ("images-train", "images-test"),
        ("train2017", "test2017"),
        ("seg_train", "seg_test"),
        ("x_train", "x_test"),
    ],
)
def test_find_splits_knows_the_words_for_splits(tmp_path, train, test):
    touch(tmp_path, *grid((train, test), ("cat", "dog")))
    assert find_splits(tmp_path) == {"train": tmp_path / train, "test": tmp_path / test}


@pytest.mark.parametrize("name", ["Val", "valid", "VALIDATION", "val_images", "validation_set", "dev"])
def test_find_splits_knows_the_words_for_validation(tmp_path, name):
    touch(tmp_path, *grid(("TRAIN", name), ("cat", "dog")))
    assert find_splits(tmp_path) == {"train": tmp_path / "TRAIN", "validation": tmp_path / name}


@pytest.mark.parametrize(
    "classes",
    [
        ("bus", "train", "tram"),
        ("bus", "steam_train"),
        ("valid", "invalid"),
        ("latest", "contest"),
        ("trainers", "sandals"),
        ("test_tube", "flask"),
        ("freight train", "passenger train"),
    ],
)
def test_find_splits_takes_other_names_for_classes(tmp_path, classes):
    touch(tmp_path, *grid(classes))
    assert find_splits(tmp_path) == {"train": tmp_path}


def test_find_splits_takes_a_folder_train_with_class_folders_for_a_split_and_not_for_a_class(tmp_path, caplog):
    touch(tmp_path, *grid(("train",), ("cat", "dog")), "notes/1.txt")
    assert find_splits(tmp_path) == {"train": tmp_path / "train"}
    assert "has a train folder; ignored beside it: notes" in caplog.text


@pytest.mark.parametrize("name", ["set_1", "latest", "train_test", "trainers", "", "42", "é"])
def test_parse_split_of_another_name_is_none(name):
    assert parse_split(name) is None


def test_name_splits_prefers_plain_words():
    names = ["train", "train_augmented", "test", "test_augmented"]
    assert name_splits(names) == {"train": "train", "test": "test"}
    assert name_splits(["a_train", "a_test", "b_train", "b_test"]) == {}, "there is no telling which"


def test_name_splits_takes_other_words_for_a_class_unless_another_split_has_them():
    assert name_splits(["steam_train", "bus"]) == {}
    assert name_splits(["steam_train", "steam_test", "bus"]) == {"steam_train": "train", "steam_test": "test"}


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ((("fold1", "fold2", "fold3"), ("cat", "dog")), "/{fold1, fold2, fold3}/{cat, dog}, so that fold1 would be a"),
        ((("entrenamiento", "prueba"), ("cat", "dog")), "rename the folders, or give one of them"),
        ((("2019", "2020"), ("images",), ("cat", "dog")), "so that 2019 would be a class"),
        ((("cat", "dog"), ("train", "test")), "wanted train/{cat, dog}, test/{cat, dog}; put the classes below"),
        ((("north", "south"), ("Training", "Testing"), ("cat", "dog")), "give one of the folders, for example "),
        ((("train1", "train2", "test"), ("cat", "dog")), "so that test would be a class"),
        ((("A", "B"), ("cat", "dog", "owl")), "found "),
    ],
)
def test_find_splits_refuses_splits_of_unknown_names_with_the_layout(tmp_path, levels, words):
    touch(tmp_path, *grid(*levels))
    with pytest.raises(UsageError) as error:
        find_splits(tmp_path)
    message = str(error.value)
    assert words in message and "class folders, or train, val and test folders" in message and str(tmp_path) in message


def test_find_splits_refuses_nested_folders_though_some_lack_a_class(tmp_path):
    touch(tmp_path, *grid(("fold1", "fold2"), ("Cat", "dog")), "fold3/cat/1.png", "fold3/dog/1.png", "fold3/owl/1.png")
    with pytest.raises(UsageError, match=r"\{fold1, fold2, fold3\}/\{Cat, dog\}"):
        find_splits(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        grid(("cat", "dog"), ("images",)),  # one folder in each
        [*grid(("cat", "dog"), ("indoor", "outdoor")), "dog/2.png"],  # a class folder with images of its own
        ["cat/tabby/1.png", "cat/siamese/1.png", "dog/poodle/1.png", "dog/beagle/1.png"],
    ],
)
def test_find_splits_takes_classes_with_folders_in_them(tmp_path, files):
    assert find_splits(touch(tmp_path, *files)) == {"train": tmp_path}


@pytest.mark.parametrize("name", ["holdout", "unseen", "train_augmented"])
def test_find_splits_refuses_a_folder_beside_train_with_the_same_classes(tmp_path, name):
    touch(tmp_path, *grid(("train", "val", name), ("cat", "dog")))
    with pytest.raises(UsageError, match=f"has {name} beside train, with the same class folders; rename it to test"):
        find_splits(tmp_path)


def test_find_splits_ignores_a_folder_beside_three_splits_with_a_warning(tmp_path, caplog):
    touch(tmp_path, *grid(("train", "val", "test", "extra"), ("cat", "dog")))
    assert list(find_splits(tmp_path)) == ["train", "validation", "test"]
    assert "ignored beside it: extra" in caplog.text


def test_descend_stops_at_images_or_a_fork_and_leaves_circles(tmp_path):
    touch(tmp_path, "a/b/c/1.png", "a/b/d/1.png", "circle/x")
    assert descend(tmp_path / "a") == tmp_path / "a" / "b"
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "back").symlink_to(tmp_path / "again")
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "there").symlink_to(tmp_path / "there")
    assert descend(tmp_path / "there").exists()
