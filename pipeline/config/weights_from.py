"""The model that the setting `weights_from` names, checked before anything slow is imported."""

import os
from pathlib import Path
from typing import Final

from pipeline.config.commands import RUN_ID
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import one_line

RULE: Final = (
    "a run's id, runs:/RUN_ID/model, models:/NAME@ALIAS, models:/m-ID, a .keras file of this program, or a "
    ".safetensors file with the names of timm's ConvMixer"
)


def weights_file(origin: str) -> Path | None:
    """Return the absolute path of the file that `weights_from` names, or None if it names a model of MLflow.

    Raises:
        UsageError: It is neither, or there is no such file.
    """
    if origin.endswith((".keras", ".safetensors")):
        path = Path(os.path.abspath(os.path.expanduser(origin)))
        if not os.path.isfile(path):
            raise UsageError(f"weights_from must be {RULE}: there is no file {one_line(path, most=400)}")
        return path
    if not (RUN_ID.fullmatch(origin) or origin.startswith(("models:/", "runs:/"))):
        raise UsageError(f"weights_from must be {RULE}, got {one_line(origin, most=400)}")
    return None
