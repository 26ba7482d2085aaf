"""Listing a folder of class folders; the files need not be images for that."""

import os

import pytest

from pipeline.data.folder import list_folder
from pipeline.runtime.errors import UsageError


def touch(root, *names):
    for name in names:
        file = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as opened:
            opened.write(b"x")
    return root


def names(files):
    return [os.path.basename(file.path) for file in files]


def error_message(root):
    with pytest.raises(UsageError) as error:
        list_folder(root)
    message = str(error.value)
    assert message.isprintable() and str(root) in message
    return message


def test_list_folder_sorts_classes_by_name_and_files_by_bytes(tmp_path):
    listing = list_folder(touch(tmp_path, "b/2.png", "b/10.png", "B/1.JPG", "a/x.jpeg", "a/y.WebP", "a/z.bmp"))
    assert listing.classes == ("B", "a", "b")
    assert names(listing.parts["train"]) == ["1.JPG", "x.jpeg", "y.WebP", "z.bmp", "10.png", "2.png"]
    assert [file.label for file in listing.parts["train"]] == [0, 1, 1, 1, 2, 2]


def test_list_folder_ignores_hidden_files_and_other_suffixes(tmp_path):
    touch(
        tmp_path,
        "a/1.png",
        "a/._1.png",
        "a/Thumbs.db",
        "a/.cache/2.png",
        "b/1.png",
        "b/list.csv",
        "c.png",
        ".git/x.png",
    )
    os.mkfifo(tmp_path / "a" / "pipe.png")  # opening it would wait for ever
    assert names(list_folder(tmp_path).parts["train"]) == ["1.png", "1.png"]


def test_list_folder_follows_links_but_enters_no_folder_twice(tmp_path):
    touch(tmp_path, "data/a/deep/er/1.png", "data/b/2.png", "elsewhere/3.png")
    (tmp_path / "data" / "a" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "b" / "itself").symlink_to("itself")
    (tmp_path / "data" / "c").symlink_to(tmp_path / "elsewhere")
    listing = list_folder(tmp_path / "data")
    assert listing.classes == ("a", "b", "c")
    assert [names([f for f in listing.parts["train"] if f.label == label]) for label in (1, 2)] == [
        ["2.png"],
        ["3.png"],
    ]
    assert "1.png" in names(listing.parts["train"])


def test_list_folder_keeps_broken_links(tmp_path):
    touch(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "lost.png").symlink_to("gone.png")
    assert names(list_folder(tmp_path).parts["train"]) == ["1.png", "lost.png", "2.png"]


def test_list_folder_prints_unusual_names_on_one_line(tmp_path):
    listing = list_folder(touch(tmp_path, b"caf\xe9/ '\"\n.png", b"b\nc/1.png", "日本/1.png"))
    assert listing.classes == (r"b\nc", r"caf\udce9", "日本")
    assert all(os.path.exists(file.path) for file in listing.parts["train"])
    touch(tmp_path, b"caf\xe9 x/no.txt")
    assert r"caf\udce9 x has none" in error_message(tmp_path)


@pytest.mark.parametrize("name", ["val", "Valid", "validation"])
def test_list_folder_finds_split_folders_in_any_case(tmp_path, name):
    touch(
        tmp_path, "Train/a/1.png", "Train/b/1.png", "TEST/a/1.png", "TEST/b/1.png", f"{name}/a/1.png", f"{name}/b/1.png"
    )
    assert list(list_folder(tmp_path).parts) == ["train", "validation", "test"]


def test_list_folder_takes_a_class_called_train(tmp_path):
    assert list_folder(touch(tmp_path, "train/1.png", "bus/1.png", "tram/1.png")).classes == ("bus", "train", "tram")


def test_list_folder_warns_of_ignored_folders_beside_train(tmp_path, caplog):
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "annotations/1.png")
    assert list(list_folder(tmp_path).parts) == ["train"]
    assert "ignored beside it: annotations" in caplog.text


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "has none; put the images of each class into a folder"),
        (["1.png", "2.png"], "has 2 images but no folder; put the images of each class into a folder"),
        (["pets/cat/1.png", "pets/dog/1.png"], "pets if the class folders are in it"),
        (["a/1.png", "b/notes.txt"], "/b has none but 1 file (1 .txt); add some"),
        (["train/1.png", "test/1.png"], "at least two class folders"),  # not the classes `train` and `test`
        (["test/a/1.png", "test/b/1.png", "val/a/1.png"], "test, val need a train folder beside them"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png"], "val, valid; keep one for each split"),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png"], "the test folder lacks b"),
        (
            ["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png", "val/c/1.png"],
            "validation folder has c, which train lacks: ",
        ),
        (
            ["train/a/1.png", "train/b/1.png", "test/A/1.png", "test/b/1.png"],
            "here a, b: the test folder lacks a, and has A instead: ",
        ),
        (["train/a/1.png", "train/b/1.png", "test/1.png", "test/2.png"], "the test folder has 2 images but no folder"),
        (["train/1.png", "test/1.png", "masks/1.png"], "/train has 1 image but no folder"),
        (["train/train/a/1.png", "train/train/b/1.png", "test/test/a/1.png"], "or move them from "),
        (["a/b/c/train/x/1.png", "a/b/c/test/x/1.png"], "/a/b/c if the class folders are in it"),
    ],
)
def test_list_folder_of_a_wrong_structure_raises(tmp_path, files, words):
    assert words in error_message(touch(tmp_path, *files))


def test_list_folder_with_empty_class_raises_with_its_absolute_path(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "c").mkdir()
    assert f"{tmp_path / 'c'} has none" in error_message(tmp_path)


@pytest.mark.parametrize("name", ["a.jfif", "a.JPE", "a.tif", "a.TIFF", "a.gif", "a.ppm", "a.JPG_large", "a.png:orig"])
def test_list_folder_takes_images_under_all_their_suffixes(tmp_path, name):
    assert names(list_folder(touch(tmp_path, f"a/{name}", "b/1.png")).parts["train"]) == [name, "1.png"]


def test_list_folder_counts_what_is_passed_over_by_suffix_and_class(tmp_path, caplog):
    touch(tmp_path, "cat/1.jpg", "dog/1.jpg", "dog/2.HEIC", "dog/more/3.heic", "cat/4.svg", "cat/5", "cat/6.JPG.txt")
    touch(tmp_path, "readme.txt", "cat/._1.jpg", "cat/Thumbs.db", "__MACOSX/cat/._1.jpg", "stray.png")
    assert list_folder(tmp_path).classes == ("cat", "dog")
    assert "5 files (2 .heic, 1 .svg, 1 without a suffix, 1 .txt), of the classes cat 3, dog 2" in caplog.text
    assert f"passed over: 1 image beside the folders in {tmp_path}" in caplog.text


def test_list_folder_without_other_files_warns_of_nothing(tmp_path, caplog):
    list_folder(
        touch(tmp_path, "train/a/1.png", "train/b/1.png", "readme.md", "train/.DS_Store", "train/a/desktop.ini")
    )
    assert not caplog.records


def test_list_folder_joins_classes_that_differ_in_unicode_form_between_splits(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    listing = list_folder(
        touch(tmp_path, f"train/{composed}/1.png", "train/tea/1.png", f"test/{decomposed}/1.png", "test/tea /1.png")
    )
    assert listing.classes == (composed, "tea")
    assert [file.label for file in listing.parts["test"]] == [0, 1]


def test_list_folder_orders_classes_alike_in_both_unicode_forms(tmp_path):
    for form, place in (("\u00e9", "a"), ("e\u0301", "b")):  # the decomposed one sorts before "ef" by its bytes
        assert list_folder(touch(tmp_path / place, f"{form}/1.png", "ef/1.png")).classes == ("ef", "\u00e9")


def test_listing_fingerprint_depends_on_file_names_sizes_and_times(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.png")
    os.utime(tmp_path / "a" / "1.png", ns=(1, 1))
    seen = {list_folder(tmp_path).fingerprint()}
    os.utime(tmp_path / "a" / "1.png", ns=(1, 2))
    seen.add(list_folder(tmp_path).fingerprint())
    os.rename(tmp_path / "a" / "1.png", tmp_path / "a" / "2.png")
    seen.add(list_folder(tmp_path).fingerprint())
    (tmp_path / "a" / "2.png").write_bytes(b"xy")
    os.utime(tmp_path / "a" / "2.png", ns=(1, 2))
    seen.add(list_folder(tmp_path).fingerprint())
    assert len(seen) == 4
