"""What is to be evaluated, as typed: which model, on which images."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from pipeline.command_line import parse_after
from pipeline.model_uri import parts
from pipeline.settings import Settings

RUN_ID = re.compile(r"[0-9a-f]{32}")
LATEST = "latest"
MODEL = "models:/NAME@ALIAS, models:/m-ID, runs:/RUN_ID/model, a run's id, or latest"


class EvaluationSettings(Settings):
    """The settings of an evaluation."""

    dataset: str | None = Field(
        None, min_length=1, max_length=4096, description="name or path of images of the same classes; none: the run's"
    )
    split: Literal["test", "validation", "all"] = Field(
        "test", description="which of its images; all: those of data that the model was not trained on"
    )
    image_size: tuple[Annotated[int, Field(ge=1, le=4096)], Annotated[int, Field(ge=1, le=4096)]] | None = Field(
        None, description="resize every image to height,width pixels; none: as the run did"
    )
    corrupted_images: int | None = Field(
        None, ge=1, le=10**9, description="corrupt at most so many of the images, evenly chosen; none: all"
    )


class Asked(NamedTuple):
    """What was typed."""

    model: str
    settings: EvaluationSettings


def from_command_line(arguments: Sequence[str], *, program: str, description: str) -> Asked:
    """What to evaluate, and on what.

    Raises:
        UsageError: no model is named, or in no way that MLflow knows, or a setting is unknown or breaks its rule.
    """
    model, given = parse_after(
        "model", MODEL, arguments, program=program, description=description, settings=EvaluationSettings.build({})
    )
    if not RUN_ID.fullmatch(model) and model != LATEST:
        parts(model)
    return Asked(model, EvaluationSettings.build(given))
