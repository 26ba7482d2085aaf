"""SHA-256 of files, and whether files are still those whose digests have been kept elsewhere."""

import hashlib
from collections.abc import Mapping
from pathlib import Path


def digests(folder: Path) -> dict[str, str]:
    """64 hexadecimal digits for each file below a folder, by its path within it."""
    return {path.relative_to(folder).as_posix(): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def changed(folder: Path, kept: Mapping[str, str]) -> list[str]:
    """Which of the files that have a digest are missing or others now."""
    here = digests(folder)
    return [name for name, digest in kept.items() if here.get(name) != digest]


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
