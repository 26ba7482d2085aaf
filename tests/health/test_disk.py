"""The cache, and the room that its disk has."""

from types import SimpleNamespace

import psutil
import pytest

from pipeline.cache import private_folder
from pipeline.health import disk


def test_what_lies_in_the_cache_is_counted(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (private_folder("data", "one") / "images").write_bytes(bytes(10**8))
    (private_folder("checkpoints", "run") / "epoch").write_bytes(b"")
    (private_folder("data") / "one.lock").touch()
    room, held = disk.cache()
    assert str(tmp_path) in room.text and room.state in {"ok", "look", "broken"}
    assert held.state == "ok"
    assert held.text.endswith("1 decoded data sets (0.1 GB), checkpoints of 1 unfinished runs (0.0 GB)")


def test_a_cache_that_cannot_be_written_is_broken(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    (finding,) = disk.cache()
    assert finding.state == "broken" and "name another folder in XDG_CACHE_HOME" in finding.text


@pytest.mark.parametrize(("free", "state"), [(0.9e9, "broken"), (1e9, "look"), (4.9e9, "look"), (5e9, "ok")])
def test_a_disk_with_little_room_is_told(monkeypatch, tmp_path, free, state):
    asked = []
    monkeypatch.setattr(psutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=int(free)))
    finding = disk.space(tmp_path / "not" / "yet", "artifacts")
    assert (finding.state, asked) == (state, [str(tmp_path)])
    assert finding.text.startswith(f"{free / 1e9:.1f} GB free for artifacts in ")
    assert ("make room" in finding.text) == (state != "ok")
