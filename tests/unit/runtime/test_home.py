"""The home folder: what libraries need, and what takes its place."""

import os
from pathlib import Path

import pytest

from pipeline.runtime import home
from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import cache_folder
from pipeline.runtime.home import prepare_home


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_usual_home_changes_nothing(tmp_path):
    environ = {"LOGNAME": "me"}
    prepare_home(environ)
    assert environ == {"LOGNAME": "me"}
    assert list(tmp_path.iterdir()) == []


def test_user_without_a_home_is_refused_in_one_line_with_the_cure(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(UsageError, match=r"^HOME must name a folder: .* is unknown to this system; try HOME=") as error:
        prepare_home({})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [None, "/dev/null/config"])
def test_matplotlib_gets_a_folder_in_the_cache_where_the_home_cannot_be_written(monkeypatch, config):
    monkeypatch.setenv("HOME", "/dev/null/home")
    environ = {"LOGNAME": "me"} | ({"XDG_CONFIG_HOME": config} if config else {})
    prepare_home(environ)
    assert environ["MPLCONFIGDIR"] == str(cache_folder("matplotlib"))


def test_folder_for_matplotlib_that_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null/home")
    environ = {"LOGNAME": "me", "MPLCONFIGDIR": "/mine"}
    prepare_home(environ)
    assert environ["MPLCONFIGDIR"] == "/mine"


def test_user_id_without_an_entry_gets_a_name(monkeypatch):
    monkeypatch.setattr(home.os, "getuid", lambda: 54321)
    environ = {}
    prepare_home(environ)
    assert environ["LOGNAME"] == "54321"
    environ = {"USER": "me"}
    prepare_home(environ)
    assert "LOGNAME" not in environ
    monkeypatch.undo()
    assert os.getuid() != 54321


@pytest.mark.parametrize("value", ["", "relative"])
def test_home_that_is_no_absolute_path_is_passed_over(value, monkeypatch):
    monkeypatch.setenv("HOME", value)
    prepare_home(os.environ)
    assert Path.home().is_absolute()
