"""Where files live that can be made again."""

from pathlib import Path

from pipeline.cache import cache_folder


def test_the_folder_follows_the_xdg_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("data", "x") == tmp_path / "convmixer" / "data" / "x"
    assert not list(tmp_path.iterdir())


def test_without_it_or_with_a_relative_one_the_folder_is_in_the_home(monkeypatch):
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert cache_folder() == Path.home() / ".cache" / "convmixer"
