"""The home folder of the user, which libraries need, and what takes its place where it cannot be written."""

import os
from collections.abc import MutableMapping
from pathlib import Path

from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import cache_folder

MATPLOTLIB_FOLDER = "MPLCONFIGDIR"
USER_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where Python looks for the name of the user


def prepare_home(environ: MutableMapping[str, str]) -> None:
    """Check that the user has a home folder, as MLflow and Keras need one, and set what a user without others lacks.

    - Matplotlib gets a folder in the cache if it cannot write to the home: else it makes a temporary one in each
      process, warns of it, and ends with an error where that folder is gone already.
    - A user id without an entry among the system's users, as containers run with, gets a name for MLflow's `user` tag.

    Raises:
        UsageError: There is no home folder.
    """
    if not os.path.isabs(environ.get("HOME", "/")):
        # an empty one is none, and a relative one would be another in each folder
        del environ["HOME"]
    try:
        home = Path.home()
    except RuntimeError:
        raise UsageError(
            f"HOME must name a folder: it is not set, and user {os.getuid()} is unknown to this system; "
            "try HOME=/tmp/home, or a folder that stays"
        ) from None
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config", "matplotlib")
    if MATPLOTLIB_FOLDER not in environ and not _can_write(config):
        environ[MATPLOTLIB_FOLDER] = str(cache_folder("matplotlib"))
    if not any(environ.get(name) for name in USER_NAMES) and not _has_entry():
        environ["LOGNAME"] = str(os.getuid())


def _can_write(folder: Path) -> bool:
    """Return whether a folder can be written, or be created where it does not exist."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _has_entry() -> bool:
    import pwd

    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True
