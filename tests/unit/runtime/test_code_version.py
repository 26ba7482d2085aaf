"""Which commit runs, in a real git checkout."""

import os
import shutil
import subprocess

import pipeline.runtime.code_version
from pipeline.runtime.code_version import code_version, training_code_digest


def checkout(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    file = folder / "code_version.py"
    shutil.copy(pipeline.runtime.code_version.__file__, file)
    monkeypatch.setattr("pipeline.runtime.code_version.__file__", str(file))
    for arguments in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"],
    ):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True)
    return file


def test_code_version_is_clean_until_a_file_changes(tmp_path, monkeypatch):
    file = checkout(tmp_path, monkeypatch)
    clean = code_version()
    assert len(clean.commit) == 40
    assert not clean.is_dirty
    file.write_text("changed")
    assert code_version() == (clean.commit, True)


def test_code_version_takes_no_lock_that_a_commit_would_need(tmp_path, monkeypatch):
    file = checkout(tmp_path, monkeypatch)
    index = file.parent / ".git" / "index"
    os.utime(file, (1, 1))  # git's status would note that it is the same all the same
    before = index.read_bytes(), index.stat().st_ino
    assert not code_version().is_dirty
    assert (index.read_bytes(), index.stat().st_ino) == before


def test_code_version_outside_a_checkout_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.runtime.code_version.__file__", str(tmp_path / "code_version.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert code_version() is None


def test_code_version_in_another_repository_is_none(tmp_path, monkeypatch):
    """The project's folder was copied into a repository that ignores it, or has not added it."""
    file = checkout(tmp_path, monkeypatch)
    copy = file.parent / "vendor" / "code_version.py"
    copy.parent.mkdir()
    shutil.copy(file, copy)
    monkeypatch.setattr("pipeline.runtime.code_version.__file__", str(copy))
    assert code_version() is None
    subprocess.run(["git", "-C", str(file.parent), "add", "vendor"], check=True)
    assert len(code_version().commit) == 40, "a repository that has added the files tracks them"


def test_code_version_ignores_the_variables_of_a_git_hook(tmp_path, monkeypatch):
    file = checkout(tmp_path, monkeypatch)
    own = code_version()
    subprocess.run(["git", "init", "-q", str(tmp_path / "other")], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    assert code_version() == own and file.exists()


def test_training_code_digest_changes_with_the_code_that_trains_alone(tmp_path, monkeypatch):
    file = tmp_path / "pipeline" / "runtime" / "code_version.py"
    monkeypatch.setattr("pipeline.runtime.code_version.__file__", str(file))

    def digest(path, text):
        (file.parents[1] / path).parent.mkdir(parents=True, exist_ok=True)
        (file.parents[1] / path).write_text(text)
        training_code_digest.cache_clear()
        return training_code_digest()

    first = digest("training/fit.py", "one")
    assert digest("commands/report.py", "one") == first
    assert digest("training/fit.py", "two") != first
    assert digest("training/fit.py", "one") == first
    monkeypatch.setattr("importlib.metadata.version", lambda library: "0")
    assert digest("training/fit.py", "one") != first
    training_code_digest.cache_clear()
