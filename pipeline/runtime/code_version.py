"""The commit of the project that runs, and whether its files have changed since."""

import subprocess
from pathlib import Path
from typing import NamedTuple


class CodeVersion(NamedTuple):
    """A state of the project's files."""

    commit: str  # 40 hexadecimal digits
    is_dirty: bool  # whether files differ from that commit


def code_version() -> CodeVersion | None:
    """Return the version of the running code; None where the project is not a Git checkout or Git is missing."""
    commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    if commit is None or status is None:
        return None
    return CodeVersion(commit, is_dirty=bool(status))


def _git(*arguments: str) -> str | None:
    # `git status` would otherwise lock the index to refresh it, and a commit made meanwhile would fail
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
