"""What is to be predicted, as typed: by which model, of which images, and where the table is written."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from pipeline.command_line import parse_after
from pipeline.errors import UsageError
from pipeline.model_uri import RULE, parts
from pipeline.printable import one_line
from pipeline.settings import Settings


class PredictSettings(Settings):
    """The settings of a prediction."""

    images: str | None = Field(
        None, min_length=1, max_length=4096, description="an image, or a folder: every image below it"
    )
    folder: str = Field(
        "predictions", min_length=1, max_length=4096, description="where the table is written, in a folder of its own"
    )


class Asked(NamedTuple):
    """What was typed."""

    model: str  # URI
    images: Path  # a file or a folder, absolute
    folder: Path


def from_command_line(arguments: Sequence[str], *, program: str, description: str) -> Asked:
    """What to predict.

    Raises:
        UsageError: no model or no images are named, a setting is unknown or breaks its rule, or the images are not
            there.
    """
    model, given = parse_after(
        "model", RULE, arguments, program=program, description=description, settings=PredictSettings.build({})
    )
    parts(model)
    settings = PredictSettings.build(given)
    if settings.images is None:
        raise UsageError("images must name an image or a folder of images, got none; give --images")
    images = Path(os.path.abspath(os.path.expanduser(settings.images)))
    if not os.path.exists(images):  # which, unlike Path's own, is False for a name that no file can have
        raise UsageError(f"images must be an existing file or folder, got {one_line(images, most=400)}")
    return Asked(model, images, Path(settings.folder).expanduser())
