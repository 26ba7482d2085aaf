"""Where files live that can be made again: the user's cache folder."""

import os
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """Path of a folder (not created) under `$XDG_CACHE_HOME/convmixer`, by default `~/.cache/convmixer`.

    XDG Base Directory Specification: a relative `$XDG_CACHE_HOME` is ignored.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return root.joinpath("convmixer", *parts)
