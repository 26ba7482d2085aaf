"""Checks of a tracking store on this machine, which take no MLflow.

MLflow itself would try for minutes to open a database that it cannot use, or write artifacts into another folder.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import one_line, shown
from pipeline.runtime.urls import TRACKING_URI, on_one_machine

DEFAULT_FILE = "mlflow.db"
DATABRICKS = "databricks"  # not a path but a profile, as in databricks://team
SQLITE = re.compile(r"sqlite(?:\+\w+)?:///(?P<path>[^?]+)")
ESCAPED = re.compile(r"%[0-9a-fA-F]{2}")
SQLITE_HEADER = b"SQLite format 3\0"


def check_local_store(environ: Mapping[str, str] = os.environ) -> None:
    """Raise UsageError if the tracking store is on this machine and cannot be used; it need not exist yet."""
    uri = environ.get(TRACKING_URI, "")
    if not on_one_machine(uri) or uri.startswith(DATABRICKS):
        return
    _check_working_folder(Path.cwd())
    if file := sqlite_file(uri):
        _check_file(file)


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite store, MLflow's default one for an empty URI; None for another store."""
    if not uri:
        return Path.cwd() / DEFAULT_FILE
    match = SQLITE.fullmatch(uri.partition("?")[0])
    return Path.cwd() / unquote(match["path"]) if match else None


def _check_working_folder(folder: Path) -> None:
    """Check the folder in which MLflow makes `mlruns`."""
    if escaped := ESCAPED.search(str(folder)):
        raise UsageError(
            f"the working folder must not have {escaped[0]} in its path, as MLflow would store artifacts below "
            f"{one_line(unquote(str(folder)))}: got {one_line(folder)}; rename it, or set {TRACKING_URI} to a server"
        )


def _check_file(file: Path) -> None:
    rule = f"the tracking store must be writable, got {shown(str(file))}"
    cure = f"make it so, or name another one in {TRACKING_URI}"
    try:
        if file.exists():
            with open(file, "rb") as opened:
                start = opened.read(len(SQLITE_HEADER))
            if start not in (b"", SQLITE_HEADER):
                raise UsageError(f"the tracking store must be a SQLite database, got {shown(str(file))}; {cure}")
            if not os.access(file, os.W_OK):
                raise UsageError(f"{rule}, which is read-only; {cure}")
        folder = next(parent for parent in file.parents if parent.exists())
    except OSError as error:
        raise UsageError(f"{rule}: {error.strerror}; {cure}") from None
    # SQLite makes a journal beside the file
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{rule}, whose folder {shown(str(folder))} is read-only or no folder; {cure}")
