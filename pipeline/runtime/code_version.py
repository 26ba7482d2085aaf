"""The code that runs: the commit of the project, whether its files have changed since, and a digest of what trains."""

import hashlib
import importlib.metadata
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

# Variables that name a repository, as listed by `git rev-parse --local-env-vars`
LOCATIONS = frozenset(
    """GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_COMMON_DIR GIT_DIR GIT_GRAFT_FILE GIT_IMPLICIT_WORK_TREE GIT_INDEX_FILE
    GIT_INTERNAL_SUPER_PREFIX GIT_NAMESPACE GIT_OBJECT_DIRECTORY GIT_PREFIX GIT_WORK_TREE""".split()
)
# What decides the result of a training beside the values of its settings and its data
TRAINING_PACKAGES = ("data", "model", "training")
TRAINING_LIBRARIES = ("keras", "numpy", "tensorflow")


class CodeVersion(NamedTuple):
    """A state of the project's files."""

    commit: str  # 40 hexadecimal digits
    is_dirty: bool  # whether files differ from that commit


def code_version() -> CodeVersion | None:
    """Return the version of the running code; None where no Git repository tracks it, or Git is missing.

    A repository around the project's folder, or around an environment that the project is installed in, is another's.
    """
    if _git("ls-files", "--error-unmatch", "--", Path(__file__).name) is None:
        return None
    commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    if commit is None or status is None:
        return None
    return CodeVersion(commit, is_dirty=bool(status))


@cache
def training_code_digest() -> str:
    """Return hexadecimal digits that change with the code that trains: the source files, and libraries' versions.

    Other than a commit it is known outside a repository, and a change of the documentation leaves it as it is.
    """
    digest = hashlib.sha256()
    for library in TRAINING_LIBRARIES:
        digest.update(f"{library} {importlib.metadata.version(library)}\n".encode())
    package = Path(__file__).parents[1]
    for folder in TRAINING_PACKAGES:
        for file in sorted((package / folder).rglob("*.py")):
            digest.update(f"{file.relative_to(package).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    # `git status` would otherwise lock the index to refresh it, and a commit made meanwhile would fail
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *arguments]
    # Git's hooks set GIT_DIR and its like, which would lead to the repository whose hook started this process
    environment = {name: value for name, value in os.environ.items() if name not in LOCATIONS}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10, env=environment
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
