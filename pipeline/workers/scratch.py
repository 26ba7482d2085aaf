"""A folder for what a driver's trials write, gone with the driver, whatever ended it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.cache import held, private_folder

LOCK = ".lock"
NEW = "new-"  # is not held yet


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder of this process's own within the cache; those of processes that were killed are removed."""
    home = private_folder("trials")
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


def _remove_unless_held(folder: Path) -> None:
    if not folder.name.startswith(NEW):
        with held(folder / LOCK) as mine:
            if mine:
                shutil.rmtree(folder, ignore_errors=True)
