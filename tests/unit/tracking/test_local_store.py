"""Tracking stores on this machine that cannot be used are refused before MLflow is imported."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import shown
from pipeline.tracking.local_store import check_local_store, sqlite_file
from tests.support.paths import ROOT
from tests.support.stores import empty_database


def refusal(uri=""):
    with pytest.raises(UsageError) as refused:
        check_local_store({"MLFLOW_TRACKING_URI": uri})
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "postgresql://me@host/db", "databricks", "mysql+pymysql://h/d"])
def test_store_elsewhere_is_not_looked_at(uri, tmp_path, monkeypatch):
    (tmp_path / "a%20b").mkdir()
    monkeypatch.chdir(tmp_path / "a%20b")
    check_local_store({"MLFLOW_TRACKING_URI": uri})


def test_store_that_can_be_written_or_does_not_exist_is_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri in ("", "sqlite:///mlflow.db", f"sqlite:///{tmp_path}/new/folder/mlflow.db"):
        check_local_store({"MLFLOW_TRACKING_URI": uri})
    shutil.copy(empty_database(), tmp_path / "mlflow.db")
    (tmp_path / "empty.db").touch()
    for uri in ("", f"sqlite:///{tmp_path}/mlflow.db?timeout=5", f"sqlite+pysqlite:///{tmp_path}/empty.db"):
        check_local_store({"MLFLOW_TRACKING_URI": uri})


def test_sqlite_file_is_the_one_that_mlflow_opens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sqlite_file("") == tmp_path / "mlflow.db"
    assert sqlite_file("sqlite:////srv/a%2520b%20c/mlflow.db") == sqlite_file("sqlite:////srv/a%2520b c/mlflow.db")
    assert str(sqlite_file("sqlite:////srv/a%2520b/mlflow.db")) == "/srv/a%20b/mlflow.db"
    assert sqlite_file("http://host/") is None


@pytest.mark.parametrize("name", ["a%20b", "50%41", "x/%e9/y"])
def test_working_folder_that_mlflow_would_misread_is_refused(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / name)
    message = refusal()
    assert message.startswith("the working folder must not have %") and str(tmp_path / name) in message
    assert message.endswith("rename it, or set MLFLOW_TRACKING_URI to a server")
    for harmless in ("a b", "100%", "a#b", "%zz"):
        (tmp_path / harmless).mkdir()
        monkeypatch.chdir(tmp_path / harmless)
        check_local_store({})


@pytest.mark.parametrize("content", [b"no database", b"\0" * 4096])
def test_file_that_is_no_database_is_refused(content, tmp_path):
    (tmp_path / "mlflow.db").write_bytes(content)
    assert "must be a SQLite database, got" in refusal(f"sqlite:///{tmp_path}/mlflow.db")


def test_folder_in_place_of_the_file_or_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "mlflow.db").mkdir()
    assert "Is a directory" in refusal(f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "file").touch()
    assert "no folder" in refusal(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_refusals_say_what_was_given_and_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "a%20b").mkdir()
    monkeypatch.chdir(tmp_path / "a%20b")
    assert refusal("sqlite:////srv/mlflow.db") == (
        "the working folder must not have %20 in its path, as MLflow would store artifacts below "
        f"{tmp_path}/a b: got {tmp_path}/a%20b; rename it, or set MLFLOW_TRACKING_URI to a server"
    )
    monkeypatch.chdir(tmp_path)
    file, cure = tmp_path / "mlflow.db", "make it so, or name another one in MLFLOW_TRACKING_URI"
    file.write_text("no database")
    assert refusal() == f"the tracking store must be a SQLite database, got {shown(str(file))}; {cure}"
    file.unlink()
    file.mkdir()
    assert refusal() == f"the tracking store must be writable, got {shown(str(file))}: Is a directory; {cure}"
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "mlflow.db"
    assert refusal(f"sqlite:///{below}").endswith(f"; {cure}")


@pytest.mark.parametrize("name", ["mlflow.db", ""])
def test_store_without_the_right_to_write_is_refused(tmp_path, monkeypatch, name):
    """Root has every right, so that it is asked for here alone."""
    shutil.copy(empty_database(), tmp_path / "mlflow.db")
    refused, asked = tmp_path / name, []

    def may(path, mode):
        asked.append((path, mode))
        return path != refused

    monkeypatch.setattr(os, "access", may)
    start = f"the tracking store must be writable, got {shown(f'{tmp_path}/mlflow.db')}, "
    folder = f"whose folder {shown(str(tmp_path))} is read-only or no folder; make"
    what = "which is read-only; make" if name else folder
    assert refusal(f"sqlite:///{tmp_path}/mlflow.db").startswith(start + what)
    assert asked[0] == (tmp_path / "mlflow.db", os.W_OK)
    assert name or asked[1] == (tmp_path, os.W_OK | os.X_OK)


READ_ONLY = """
set -e
mount -t tmpfs none "$1"; cp "$2" "$1/mlflow.db"; mount -o remount,ro "$1"; cd "$1"
PYTHONPATH="$3" MLFLOW_TRACKING_URI= exec "$4" -m pipeline train smoke
"""


@pytest.mark.parametrize("which", ["file", "folder", "mount"])
def test_read_only_store_is_refused_by_a_training_in_one_line_and_at_once(which, tmp_path, monkeypatch):
    shutil.copy(empty_database(), tmp_path / "mlflow.db")
    variables = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": ""}
    command, cwd = [sys.executable, "-m", "pipeline", "train", "smoke"], tmp_path
    if which == "mount":
        arguments = [str(tmp_path), str(empty_database()), str(ROOT), sys.executable]
        command, cwd = ["unshare", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh", *arguments], "/"
    elif os.geteuid() == 0:
        pytest.skip("root may write any file")
    else:
        (tmp_path / "mlflow.db" if which == "file" else tmp_path).chmod(0o500)
    began = time.monotonic()
    completed = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    tmp_path.chmod(0o700)
    if "mount" in completed.stderr or "unshare" in completed.stderr:
        pytest.skip(f"no file system can be mounted here: {completed.stderr.strip()}")
    (line,) = completed.stderr.splitlines()
    assert (completed.returncode, completed.stdout) == (2, "")
    assert line.startswith("error: the tracking store must be writable, got") and "read-only" in line
    assert seconds < 10
