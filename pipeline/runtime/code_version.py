"""Which commit of the project runs, and whether its files were changed since."""

import subprocess
from pathlib import Path


def code_version() -> dict[str, str]:
    """`git.commit` and `git.dirty` (true or false); empty where the project is no git checkout or git is missing."""
    commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    if commit is None or status is None:
        return {}
    return {"git.commit": commit, "git.dirty": str(bool(status)).lower()}


def _git(*arguments: str) -> str | None:
    # without the lock that git's status takes to note what it has seen: a commit made meanwhile would fail
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
