"""The cache folder, locks, digests and temporary directories."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pipeline.runtime import files
from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import (
    cache_folder,
    changed_files,
    check_cache_writable,
    private_folder,
    renew_temporary_files,
    sha256_files,
    temporary_directory,
    temporary_files,
    try_lock,
)
from tests.support.paths import ROOT


def test_cache_folder_follows_the_xdg_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("data", "x") == tmp_path / "convmixer" / "data" / "x"
    assert not list(tmp_path.iterdir())


def test_cache_folder_without_an_absolute_xdg_variable_is_in_the_home(monkeypatch):
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert cache_folder() == Path.home() / ".cache" / "convmixer"


def test_private_folder_is_created_for_this_user_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    before = os.umask(0)
    try:
        folder = private_folder("a", "b")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (folder, *folder.parents[:3])} == {0o700}
    assert private_folder("a", "b") == folder


def test_check_cache_writable_refuses_with_how_to_name_another_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    check_cache_writable()
    assert os.listdir(tmp_path / "convmixer") == []
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(UsageError, match=r"/dev/null/convmixer: Not a directory; .* another folder in XDG_CACHE_HOME$"):
        check_cache_writable()


def test_sha256_files_returns_the_digest_of_every_file_below(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "deep" / "b").write_bytes(b"two" * 1_000_000)
    assert sha256_files(tmp_path) == {
        "a": hashlib.sha256(b"one").hexdigest(),
        "deep/b": hashlib.sha256(b"two" * 1_000_000).hexdigest(),
    }


def test_changed_files_are_those_missing_or_different_not_those_added(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name)
    kept = sha256_files(tmp_path)
    assert changed_files(tmp_path, kept) == []
    (tmp_path / "a").unlink()
    (tmp_path / "b").write_text("B")
    (tmp_path / "d").write_text("d")
    assert changed_files(tmp_path, kept) == ["a", "b"]


HOLD = """
import sys
from pipeline.runtime.files import temporary_directory
with temporary_directory("trials") as folder:
    (folder / "output.txt").write_text("text")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_temporary_directory_is_removed_at_its_end_or_after_a_kill_by_the_next():
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        its = Path(other.stdout.readline().strip())
        with temporary_directory("trials") as mine:
            assert mine != its and (its / "output.txt").exists(), "it lives"
        assert not mine.exists()
        other.send_signal(signal.SIGKILL)
    assert its.exists()
    with temporary_directory("trials") as mine:
        assert list(private_folder("trials").iterdir()) == [mine]


def test_temporary_files_are_put_into_such_a_directory_until_the_end():
    before = tempfile.gettempdir()
    with temporary_files("runs"), tempfile.NamedTemporaryFile() as file:
        assert Path(file.name).is_relative_to(private_folder("runs"))
    assert tempfile.gettempdir() == before
    assert list(private_folder("runs").iterdir()) == []


def no_room(monkeypatch, below):
    """Let no file below a folder have any content, as on a full disk."""

    def check_room(folder):
        if folder.is_relative_to(below):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_check_room", check_room)


def test_temporary_files_on_a_full_disk_go_to_the_systems_folder_with_a_warning(tmp_path, monkeypatch, caplog):
    no_room(monkeypatch, tmp_path)
    before = tempfile.gettempdir()
    with temporary_files("runs"), tempfile.NamedTemporaryFile() as file:
        folder = Path(file.name).parent
        assert folder.parent == Path(before)
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists() and tempfile.gettempdir() == before
    (warning,) = caplog.messages
    assert warning == f"temporary files go to {folder}, not to {cache_folder('runs')}: No space left on device"


def test_renew_temporary_files_creates_a_folder_again_that_was_removed(caplog):
    with temporary_files("runs"):
        shutil.rmtree(cache_folder())
        renew_temporary_files()
        with tempfile.NamedTemporaryFile() as file:
            assert Path(file.name).is_relative_to(private_folder("runs"))
        assert Path(tempfile.gettempdir()).stat().st_mode & 0o777 == 0o700
    assert list(private_folder("runs").iterdir()) == [] and not caplog.messages


def test_renew_temporary_files_leaves_a_disk_that_has_become_full(tmp_path, monkeypatch, caplog):
    before = tempfile.gettempdir()
    with temporary_files("runs"):
        own = Path(tempfile.gettempdir())
        no_room(monkeypatch, tmp_path)
        renew_temporary_files()
        renew_temporary_files()
        other = Path(tempfile.gettempdir())
        assert other.parent == Path(before) and len(caplog.messages) == 1
    assert not own.exists() and not other.exists() and tempfile.gettempdir() == before


def test_renew_temporary_files_without_such_a_directory_changes_nothing(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    renew_temporary_files()
    assert tempfile.tempdir is None


def test_check_cache_writable_with_a_full_disk_warns(tmp_path, monkeypatch, caplog):
    no_room(monkeypatch, tmp_path)
    check_cache_writable()
    assert caplog.messages == [f"the disk of the cache is full, so no checkpoints are kept: {cache_folder()}"]


LOCKED = """
import sys
from pathlib import Path
from pipeline.runtime.files import lock
with lock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_try_lock_yields_false_while_another_process_holds_the_lock(tmp_path):
    file = tmp_path / "lock"
    command = [sys.executable, "-c", LOCKED, str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with try_lock(file) as locked:
            assert not locked
        other.send_signal(signal.SIGKILL)
    with try_lock(file) as locked:
        assert locked, "the kernel frees the lock of a killed process"
    with try_lock(file) as locked:
        assert locked, "it is free again after the block"


def test_lock_waits_until_it_is_free(tmp_path):
    file = tmp_path / "lock"
    command = [sys.executable, "-c", LOCKED, str(file)]
    with try_lock(file) as locked:
        assert locked
        other = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        os.set_blocking(other.stdout.fileno(), False)
        time.sleep(0.5)
        assert not other.stdout.readline()
    os.set_blocking(other.stdout.fileno(), True)
    with other:
        assert other.stdout.readline() == "locked\n"
        other.stdin.close()
