"""Facts about which files are predicted, and whose folders tell the truth."""

import pytest

from pipeline.data.image_files import find_images
from pipeline.runtime.errors import UsageError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_images_at_any_depth_are_found_in_order_and_nothing_else(tmp_path):
    touch(tmp_path, "b.PNG", "a/deep/er.jpg", "note.txt", ".hidden.png", ".hidden/c.png")
    found = find_images(tmp_path)
    assert [found.display_name(file) for file in found.files] == ["a/deep/er.jpg", "b.PNG"]


def test_a_file_is_taken_whatever_its_suffix(tmp_path):
    touch(tmp_path, "picture.dat")
    found = find_images(tmp_path / "picture.dat")
    assert [found.display_name(file) for file in found.files] == ["picture.dat"] and found.labels_from_folders(
        ["picture.dat"]
    ) == [None]


def test_a_name_that_cannot_be_printed_is_escaped(tmp_path):
    touch(tmp_path, "a\nb.png")
    found = find_images(tmp_path)
    assert [found.display_name(file) for file in found.files] == [r"a\nb.png"]


@pytest.mark.parametrize(
    ("names", "truth"),
    [
        (["cat/a.png", "dog/b.png", "dog/more/c.png"], [0, 1, 1]),
        (["cat/a.png"], [0]),
        (["c.png", "dog/b.png"], [None, 1]),
        (["cat/a.png", "dog/b.png", "owl/c.png"], [None, None, None]),
        (["test/cat/a.png", "test/dog/b.png"], [None, None]),
    ],
)
def test_folders_tell_the_truth_if_all_are_called_as_classes(tmp_path, names, truth):
    touch(tmp_path, *names)
    assert find_images(tmp_path).labels_from_folders(["cat", "dog"]) == truth


def test_folders_that_are_called_as_no_class_are_named(tmp_path):
    touch(tmp_path, "owl/a.png", "cat/b.png", "ant/c.png", "d.png")
    assert find_images(tmp_path).folders_without_class(["cat", "dog"]) == ["ant", "owl"]


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UsageError, match="^images must be a folder with JPEG, PNG, BMP or WebP files, .* has none$"):
        find_images(touch(tmp_path, "note.txt"))
