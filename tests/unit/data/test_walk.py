"""Walking through a folder for image files."""

import os
from collections import Counter

import pytest

from pipeline.data import walk
from pipeline.data.walk import (
    SUFFIXES,
    count_images,
    describe_passed_over,
    is_image_name,
    list_subfolders,
    walk_images,
)
from pipeline.runtime.errors import UsageError


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_is_image_name_takes_every_suffix_in_any_case(suffix):
    assert is_image_name(f"a{suffix}") and is_image_name(f"a.b{suffix.upper()}")


@pytest.mark.parametrize("name", ["a.jpg_large", "a.PNG-small", "a.jpeg:orig"])
def test_is_image_name_takes_the_names_that_browsers_save(name):
    assert is_image_name(name)


@pytest.mark.parametrize("name", ["jpg", ".jpg", "a.jpg.txt", "a.heic", "a.svg", "a.jpgx", "a.jpg_mask", "a", "a."])
def test_is_image_name_refuses_other_names(name):
    assert not is_image_name(name)


def test_walk_images_counts_other_files_but_no_clutter(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "@eaDir").mkdir()
    for name in ("1.png", "deep/2.jpg", "deep/3.heic", "4.HEIC", "5", "thumbs.DB", ".hidden.png", "@eaDir/1.png"):
        (tmp_path / name).touch()
    passed_over = Counter()
    assert {file.path.removeprefix(f"{tmp_path}/") for file in walk_images(tmp_path, passed_over)} == {
        "1.png",
        "deep/2.jpg",
    }
    assert passed_over == {".heic": 2, "without a suffix": 1}


def test_walk_images_enters_a_folder_once_however_many_links_lead_to_it(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").touch()
    (tmp_path / "images").mkdir()
    for link in ("a", "b"):
        (tmp_path / "images" / link).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "images")
    assert len(list(walk_images(tmp_path / "images", Counter()))) == 1


@pytest.fixture(params=[False, True])
def any_order(request, monkeypatch):
    """Have folders listed in the order of names and in the reverse one, as file systems list them in any."""
    list_entries = walk.list_entries
    by_name = {"key": lambda entry: entry.name, "reverse": request.param}
    monkeypatch.setattr(walk, "list_entries", lambda folder: sorted(list_entries(folder), **by_name))


def test_walk_images_names_files_by_their_own_path_rather_than_through_a_link(tmp_path, any_order):
    for folder in ("cat/real", "cat/a", "cat/z/deep"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.png").touch()
    (tmp_path / "cat" / "again").symlink_to("real")
    (tmp_path / "cat" / "same").symlink_to("real")
    for folder in ("a", "real"):
        (tmp_path / "cat" / folder / "link").symlink_to("../z/deep")
    found = [os.path.relpath(file.path, tmp_path) for file in walk_images(tmp_path / "cat", Counter())]
    assert sorted(found) == ["cat/a/1.png", "cat/real/1.png", "cat/z/deep/1.png"]


def test_walk_images_takes_the_first_of_several_links_by_name(tmp_path, any_order):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").touch()
    (tmp_path / "cat").mkdir()
    for link in ("n", "m", "o"):
        (tmp_path / "cat" / link).symlink_to(tmp_path / "elsewhere")
    assert [file.path for file in walk_images(tmp_path / "cat", Counter())] == [f"{tmp_path}/cat/m/1.png"]


def test_describe_passed_over_names_the_most_frequent_first_and_counts_the_rest():
    assert describe_passed_over(Counter({".a": 1, ".heic": 1200})) == "1,201 files (1,200 .heic, 1 .a)"
    many = Counter({f".{number}": 9 - number for number in range(8)})
    assert describe_passed_over(many) == "44 files (9 .0, 8 .1, 7 .2, 6 .3, 5 .4 and 3 more)"


def test_count_images_and_list_subfolders_look_at_one_level(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "1.png").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder.png")
    (tmp_path / "2.png").touch()
    (tmp_path / "lost").symlink_to("nowhere")
    assert count_images(tmp_path) == 1
    assert list(list_subfolders(tmp_path)) == ["folder.png", "link"]


def test_list_subfolders_of_what_is_no_folder_raises(tmp_path):
    with pytest.raises(UsageError, match="every folder must be readable: .*absent: No such file"):
        list_subfolders(tmp_path / "absent")
