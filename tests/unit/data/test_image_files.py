"""The image files to predict, and labels from their folders."""

import re

import pytest

from pipeline.data.image_files import find_images
from pipeline.runtime.errors import UsageError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_find_images_in_a_folder_returns_images_at_any_depth_in_order(tmp_path):
    touch(tmp_path, "b.PNG", "a/deep/er.jpg", "note.txt", ".hidden.png", ".hidden/c.png")
    images = find_images(tmp_path)
    assert [images.display_name(file) for file in images.files] == ["a/deep/er.jpg", "b.PNG"]


def test_find_images_of_a_file_takes_any_suffix(tmp_path):
    touch(tmp_path, "picture.dat")
    images = find_images(tmp_path / "picture.dat")
    assert [images.display_name(file) for file in images.files] == ["picture.dat"]
    assert images.labels_from_folders(["picture.dat"]) == [None]


def test_display_name_escapes_what_cannot_be_printed(tmp_path):
    touch(tmp_path, "a\nb.png")
    images = find_images(tmp_path)
    assert [images.display_name(file) for file in images.files] == [r"a\nb.png"]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["cat/a.png", "dog/b.png", "dog/more/c.png"], [0, 1, 1]),
        (["cat/a.png"], [0]),
        (["c.png", "dog/b.png"], [None, 1]),
        (["cat/a.png", "dog/b.png", "owl/c.png"], [None, None, None]),
        (["test/cat/a.png", "test/dog/b.png"], [None, None]),
    ],
)
def test_labels_from_folders_needs_every_folder_to_have_the_name_of_a_class(tmp_path, names, labels):
    touch(tmp_path, *names)
    assert find_images(tmp_path).labels_from_folders(["cat", "dog"]) == labels


def test_folders_without_class_are_listed_in_order(tmp_path):
    touch(tmp_path, "owl/a.png", "cat/b.png", "ant/c.png", "d.png")
    assert find_images(tmp_path).folders_without_class(["cat", "dog"]) == ["ant", "owl"]


def test_labels_from_folders_takes_both_unicode_forms(tmp_path):
    touch(tmp_path, "cafe\u0301/a.png", "tea /b.png")
    assert find_images(tmp_path).labels_from_folders(["caf\u00e9", "tea"]) == [0, 1]


def test_find_images_counts_what_is_passed_over(tmp_path, caplog):
    touch(tmp_path, "a.png", "b.heic", "c/d.heic", "notes.txt", ".hidden.heic")
    assert len(find_images(tmp_path).files) == 1
    assert f"passed over in {tmp_path}, as no image has such a suffix: 3 files (2 .heic, 1 .txt)" in caplog.text


@pytest.mark.parametrize(("names", "has"), [(["note.txt"], r"has 1 file \(1 \.txt\)"), ([], "has none")])
def test_find_images_in_a_folder_without_images_raises(tmp_path, names, has):
    folder = re.escape(str(tmp_path))
    with pytest.raises(UsageError, match=f"^images must be a folder with JPEG, PNG, .*, got {folder}, which {has}$"):
        find_images(touch(tmp_path, *names))
