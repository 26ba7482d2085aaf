"""Whether the cache can be written, how full its disk is, and what lies in it."""

from collections.abc import Iterator
from pathlib import Path

import psutil

from pipeline.cache import cache_folder, refuse_unwritable
from pipeline.errors import UsageError
from pipeline.health.finding import Finding

GB = 10**9
BROKEN_BYTES = GB  # less than this free: a data set or a checkpoint may not fit
LOOK_BYTES = 5 * GB


def cache() -> Iterator[Finding]:
    """The folder of decoded data sets and checkpoints."""
    try:
        refuse_unwritable()
    except UsageError as error:
        yield Finding("broken", str(error))
        return
    yield space(cache_folder(), "the cache")
    data, checkpoints = _folders(cache_folder("data")), _folders(cache_folder("checkpoints"))
    yield Finding(
        "ok",
        f"cache {cache_folder()}: {len(data)} decoded data sets ({_size(data):.1f} GB), checkpoints of "
        f"{len(checkpoints)} unfinished runs ({_size(checkpoints):.1f} GB)",
    )


def space(folder: Path, what: str) -> Finding:
    """How much is free on the disk that a folder lies on, or will."""
    free = psutil.disk_usage(str(next(path for path in (folder, *folder.parents) if path.exists()))).free
    text = f"{free / GB:.1f} GB free for {what} in {folder}"
    if free >= LOOK_BYTES:
        return Finding("ok", text)
    return Finding("broken" if free < BROKEN_BYTES else "look", f"{text}: make room, or name another folder")


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.glob("*") if path.is_dir()]


def _size(folders: list[Path]) -> float:
    """In GB."""
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file()) / GB
