"""How a person names a model in MLflow."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from pipeline.config.arguments import parse_after
from pipeline.config.base import Config
from pipeline.runtime.errors import UsageError
from pipeline.runtime.text import one_line


class DoctorConfig(Config):
    """What the doctor is asked to do besides."""

    close: tuple[str, ...] | None = Field(
        None, description="ids of open runs that have died on other hosts, to be closed as FAILED"
    )


MODEL_URI = re.compile(
    r"models:/(?P<id>m-[0-9a-f]{32})"
    r"|models:/(?P<name>[^/:@]+)(?:@(?P<alias>[^/:@]+)|/(?P<version>[0-9]+|latest))"
    r"|runs:/(?P<run>[0-9a-f]{32})/(?P<of>[^/:]+)"
)
MODEL_URI_RULE = "models:/NAME@champion, models:/NAME/VERSION, runs:/RUN_ID/model or models:/m-ID"


def parse_model_uri(uri: str) -> dict[str, str]:
    """What a URI names: an `id`; or a `name` with an `alias` or a `version`; or a `run` and which model `of` it.

    Raises:
        UsageError: it is no such URI.
    """
    found = MODEL_URI.fullmatch(uri)
    if found is None:
        raise UsageError(f"model must be {MODEL_URI_RULE}, got {one_line(uri, most=200)}")
    return {part: value for part, value in found.groupdict().items() if value is not None}


EVALUATE_RUN_ID = re.compile(r"[0-9a-f]{32}")
LATEST = "latest"
MODEL = "models:/NAME@ALIAS, models:/m-ID, runs:/RUN_ID/model, a run's id, or latest"


class EvaluateConfig(Config):
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


class EvaluateCommand(NamedTuple):
    """What was typed."""

    model: str
    settings: EvaluateConfig


def parse_evaluate(arguments: Sequence[str], *, program: str, description: str) -> EvaluateCommand:
    """What to evaluate, and on what.

    Raises:
        UsageError: no model is named, or in no way that MLflow knows, or a setting is unknown or breaks its rule.
    """
    model, given = parse_after(
        "model", MODEL, arguments, program=program, description=description, settings=EvaluateConfig.build({})
    )
    if not EVALUATE_RUN_ID.fullmatch(model) and model != LATEST:
        parse_model_uri(model)
    return EvaluateCommand(model, EvaluateConfig.build(given))


class PredictConfig(Config):
    """The settings of a prediction."""

    images: str | None = Field(
        None, min_length=1, max_length=4096, description="an image, or a folder: every image below it"
    )
    folder: str = Field(
        "predictions", min_length=1, max_length=4096, description="where the table is written, in a folder of its own"
    )


class PredictCommand(NamedTuple):
    """What was typed."""

    model: str  # URI
    images: Path  # a file or a folder, absolute
    folder: Path


def parse_predict(arguments: Sequence[str], *, program: str, description: str) -> PredictCommand:
    """What to predict.

    Raises:
        UsageError: no model or no images are named, a setting is unknown or breaks its rule, or the images are not
            there.
    """
    model, given = parse_after(
        "model", MODEL_URI_RULE, arguments, program=program, description=description, settings=PredictConfig.build({})
    )
    parse_model_uri(model)
    settings = PredictConfig.build(given)
    if settings.images is None:
        raise UsageError("images must name an image or a folder of images, got none; give --images")
    images = Path(os.path.abspath(os.path.expanduser(settings.images)))
    if not os.path.exists(images):  # which, unlike Path's own, is False for a name that no file can have
        raise UsageError(f"images must be an existing file or folder, got {one_line(images, most=400)}")
    return PredictCommand(model, images, Path(settings.folder).expanduser())


RUNS = "an experiment, a study, run ids with commas between, or an MLflow filter"


class ReportConfig(Config):
    """The settings of a report."""

    metric: Literal["auto", "test_accuracy", "best_val_accuracy"] = Field(
        "auto", description="what ranks; auto: test_accuracy where at least half of the runs have it"
    )
    folder: str = Field(
        "reports", min_length=1, max_length=4096, description="where the report is written, in a folder of its own"
    )
    rows: int = Field(50, ge=1, le=1000, description="recipes of one data set on the page; the CSV file holds them all")


class ReportCommand(NamedTuple):
    """What was typed."""

    runs: str
    settings: ReportConfig


def parse_report(arguments: Sequence[str], *, program: str, description: str) -> ReportCommand:
    """What to compare, and how.

    Raises:
        UsageError: nothing is named, or a setting is unknown or breaks its rule.
    """
    runs, given = parse_after(
        "runs", RUNS, arguments, program=program, description=description, settings=ReportConfig.build({})
    )
    return ReportCommand(runs, ReportConfig.build(given))
