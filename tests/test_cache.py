"""Where files live that can be made again."""

import os
from pathlib import Path

import pytest

from pipeline.cache import cache_folder, private_folder, refuse_unwritable
from pipeline.errors import UsageError


def test_the_folder_follows_the_xdg_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("data", "x") == tmp_path / "convmixer" / "data" / "x"
    assert not list(tmp_path.iterdir())


def test_without_it_or_with_a_relative_one_the_folder_is_in_the_home(monkeypatch):
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert cache_folder() == Path.home() / ".cache" / "convmixer"


def test_what_is_made_of_it_is_for_this_user_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    before = os.umask(0)
    try:
        folder = private_folder("a", "b")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (folder, *folder.parents[:3])} == {0o700}
    assert private_folder("a", "b") == folder


def test_a_cache_that_takes_no_file_is_refused_with_how_to_name_another(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    refuse_unwritable()
    assert os.listdir(tmp_path / "convmixer") == []
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(UsageError, match=r"/dev/null/convmixer: Not a directory; .* another folder in XDG_CACHE_HOME$"):
        refuse_unwritable()
