"""A folder for what a process writes that is of no use after it, gone with the process, whatever ended it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.cache import held, private_folder

LOCK = ".lock"
NEW = "new-"  # is not held yet


@contextmanager
def scratch(kind: str) -> Iterator[Path]:
    """A folder of this process's own within the cache; those of its kind whose processes were killed are removed."""
    home = private_folder(kind)
    for left in home.iterdir():
        with suppress(OSError):
            _remove_unless_held(left)
    made = Path(tempfile.mkdtemp(dir=home, prefix=NEW))
    with held(made / LOCK):
        folder = made.rename(home / made.name.removeprefix(NEW))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def temporary_files(kind: str) -> Iterator[None]:
    """Within it temporary files lie in such a folder: TensorFlow writes one for each function that it traces."""
    before = tempfile.tempdir
    with scratch(kind) as folder:
        tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before


def _remove_unless_held(folder: Path) -> None:
    if not folder.name.startswith(NEW):
        with held(folder / LOCK) as mine:
            if mine:
                shutil.rmtree(folder, ignore_errors=True)
