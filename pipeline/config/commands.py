"""The command lines of evaluate, predict, export, report and doctor: their settings, and how a model is named."""

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from pipeline.config.arguments import parse_arguments, parse_with_positional
from pipeline.config.base import Config
from pipeline.config.monitor import ResultMetric
from pipeline.runtime.errors import UsageError
from pipeline.runtime.shell import install_extra_command
from pipeline.runtime.text import one_line

LATEST = "latest"
RUN_ID = re.compile(r"[0-9a-f]{32}")
MODEL_URI = re.compile(
    r"models:/(?P<id>m-[0-9a-f]{32})"
    r"|models:/(?P<name>[^/:@]+)(?:@(?P<alias>[^/:@]+)|/(?P<version>[0-9]+|latest))"
    r"|runs:/(?P<run>[0-9a-f]{32})/(?P<of>[^/:]+)"
)
MODEL_URI_RULE = "models:/NAME@champion, models:/NAME/VERSION, runs:/RUN_ID/model or models:/m-ID"
MODEL_RULE = "models:/NAME@ALIAS, models:/m-ID, runs:/RUN_ID/model, a run's id, or latest"
RUNS_RULE = "an experiment, a study, run ids with commas between, or an MLflow filter"


def check_model(model: str) -> None:
    """Raise UsageError unless a model is named by a URI, the id of its run, or as the latest."""
    if model != LATEST and not RUN_ID.fullmatch(model) and not MODEL_URI.fullmatch(model):
        raise UsageError(f"model must be {MODEL_RULE}, got {one_line(model, most=200)}")


def parse_model_uri(uri: str) -> dict[str, str]:
    """Return the parts of a model's URI: an `id`; a `name` with an `alias` or a `version`; or a `run` and a name `of`.

    Raises:
        UsageError: it is no such URI.
    """
    found = MODEL_URI.fullmatch(uri)
    if found is None:
        raise UsageError(f"model must be {MODEL_URI_RULE}, got {one_line(uri, most=200)}")
    return {part: value for part, value in found.groupdict().items() if value is not None}


EVALUATE = """\
Measure the accuracy, calibration and robustness of a logged model, and
show what it looks at.

MODEL is evaluated on the test images of the data set that it was trained on,
or on other images of the same classes (--dataset). The results go to the run
that trained the model; the evaluation has a run of its own below it.

examples:
  convmixer evaluate latest
  convmixer evaluate models:/digits@champion --dataset ~/scans --split all
  convmixer evaluate models:/digits@champion --calibrate true
"""


class EvaluateConfig(Config):
    """The settings of an evaluation."""

    dataset: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="name or path of other images of the same classes; none: those of the run",
    )
    split: Literal["test", "validation", "all"] = Field(
        "test", description="which of the images; all: only for images that the model was not trained on"
    )
    corrupted_images: int | None = Field(
        None, ge=1, le=10**9, description="corrupt at most this many of the images, evenly spaced; none: all"
    )
    calibrate: bool = Field(
        False,
        description="log the model with calibrated probabilities too, by the temperature that fits the run's "
        "validation images best; if the model is registered, as a new version, which takes over its aliases",
    )


class EvaluateCommand(NamedTuple):
    """The parsed command line of `evaluate`."""

    model: str  # a model's URI, a run's id, or `latest`
    settings: EvaluateConfig


def parse_evaluate(arguments: Sequence[str]) -> EvaluateCommand:
    """Return which model to evaluate, and on which images.

    Raises:
        UsageError: no model is named, or it is named in no way that MLflow knows, or a setting is unknown or breaks
            its rule.
    """
    model, given = parse_with_positional(
        arguments,
        command="evaluate",
        description=EVALUATE,
        settings=EvaluateConfig.build({}),
        positional=("model", MODEL_RULE),
    )
    check_model(model)
    return EvaluateCommand(model, EvaluateConfig.build(given))


PREDICT = """\
Classify image files with a logged model.

The table of all files, predictions.csv, is written to predictions/RUN_ID/
(or below another --folder), and logged to a run of its own in MLflow, below
the run that trained the model.

examples:
  convmixer predict latest --images ~/scans
  convmixer predict models:/digits@champion --images ~/scans/one.png
"""


class PredictConfig(Config):
    """The settings of a prediction."""

    images: str | None = Field(
        None, min_length=1, max_length=4096, description="an image file, or a folder: all images below it"
    )
    folder: str = Field(
        "predictions",
        min_length=1,
        max_length=4096,
        description="where the table is written, in a folder named after the run",
    )


class PredictCommand(NamedTuple):
    """The parsed command line of `predict`."""

    model: str  # a model's URI, a run's id, or `latest`
    images: Path  # a file or a folder, absolute
    folder: Path


def parse_predict(arguments: Sequence[str]) -> PredictCommand:
    """Return with which model to classify which images.

    Raises:
        UsageError: no model or no images are named, a setting is unknown or breaks its rule, or the images do not
            exist.
    """
    model, given = parse_with_positional(
        arguments,
        command="predict",
        description=PREDICT,
        settings=PredictConfig.build({}),
        positional=("model", MODEL_RULE),
    )
    check_model(model)
    settings = PredictConfig.build(given)
    if settings.images is None:
        raise UsageError("images must name an image or a folder of images, got none; give --images")
    images = Path(os.path.abspath(os.path.expanduser(settings.images)))
    # unlike Path.exists, this is False for a name that no file can have
    if not os.path.exists(images):
        raise UsageError(f"images must be an existing file or folder, got {one_line(images, most=400)}")
    return PredictCommand(model, images, Path(os.path.expanduser(settings.folder)))


EXPORT = """\
Write a logged model in formats that run without Keras.

Each file is loaded by its own runtime and compared with the Keras model on
validation images, or on other images of the same classes (--dataset). It is
kept, among the artifacts of the run that trained the model, if no
probability differs by more than the tolerance. The exit code is 1 if a
format is refused.

examples:
  convmixer export latest
  convmixer export models:/digits@champion --formats onnx,litert,litert_int8,saved_model
"""
ExportFormat = Literal["onnx", "litert", "litert_int8", "saved_model"]
# By format: how much a probability may differ from Keras' by default, and the modules that the format needs
TOLERANCES: dict[ExportFormat, float] = {"onnx": 1e-4, "litert": 1e-4, "litert_int8": 0.05, "saved_model": 1e-4}
EXPORT_MODULES: dict[ExportFormat, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxruntime"),
    "litert": ("ai_edge_litert",),
    "litert_int8": ("ai_edge_litert",),
    "saved_model": (),
}


class ExportConfig(Config):
    """The settings of an export."""

    formats: tuple[ExportFormat, ...] = Field(("onnx",), min_length=1, description="what to write")
    dataset: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="name or path of other images of the same classes to compare on; none: the run's for validation",
    )
    images: int = Field(1000, ge=1, le=10**6, description="compare on at most this many images, evenly spaced")
    tolerance: float | None = Field(
        None,
        ge=0,
        le=1,
        description="largest difference of a probability that is kept; none: 0.0001, and 0.05 for litert_int8",
    )
    representative_images: int = Field(
        200, ge=1, le=10**5, description="images, of those for training, whose activations scale those of litert_int8"
    )


class ExportCommand(NamedTuple):
    """The parsed command line of `export`."""

    model: str  # a model's URI, a run's id, or `latest`
    settings: ExportConfig


def parse_export(arguments: Sequence[str]) -> ExportCommand:
    """Return which model to export, and to which formats.

    Raises:
        UsageError: no model is named, a setting is unknown or breaks its rule, or a format needs a package that is not
            installed.
    """
    model, given = parse_with_positional(
        arguments,
        command="export",
        description=EXPORT,
        settings=ExportConfig.build({}),
        positional=("model", MODEL_RULE),
    )
    check_model(model)
    settings = ExportConfig.build(given)
    modules = dict.fromkeys(module for name in settings.formats for module in EXPORT_MODULES[name])
    if missing := [module.replace("_", "-") for module in modules if find_spec(module) is None]:
        raise UsageError(
            f"formats={settings.text('formats')} needs {' and '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed; try: {install_extra_command('export')}"
        )
    return ExportCommand(model, settings)


REPORT = """\
Compare finished runs on one HTML page.

RUNS is an experiment, a study, run ids with commas between, or an MLflow
filter. The page, report.html, and its tables, leaderboard.csv and
leaderboard.md, are written to reports/RUN_ID/ (or below another --folder),
and logged to a run of their own in MLflow.

examples:
  convmixer report Default
  convmixer report "params.depth = '8' and metrics.test_accuracy > 0.9"
"""


class ReportConfig(Config):
    """The settings of a report."""

    metric: Literal["auto", ResultMetric] = Field(
        "auto",
        description="metric of the ranking; auto: what the runs monitor, or accuracy if that differs; on the test "
        "images if at least half of the runs have it",
    )
    folder: str = Field(
        "reports",
        min_length=1,
        max_length=4096,
        description="where the report is written, in a folder named after the run",
    )
    rows: int = Field(
        50, ge=1, le=1000, description="groups of runs shown for each data set; the CSV file has all of them"
    )


class ReportCommand(NamedTuple):
    """The parsed command line of `report`."""

    runs: str
    settings: ReportConfig


def parse_report(arguments: Sequence[str]) -> ReportCommand:
    """Return which runs to compare, and how.

    Raises:
        UsageError: no runs are named, or a setting is unknown or breaks its rule.
    """
    runs, given = parse_with_positional(
        arguments,
        command="report",
        description=REPORT,
        settings=ReportConfig.build({}),
        positional=("runs", RUNS_RULE),
    )
    return ReportCommand(runs, ReportConfig.build(given))


DOCTOR = """\
Check the installation, the tracking store, the disks and the device.

Prints one line for each check, with a remedy where something is wrong. Also
sends what runs could not send while the tracking server was away, and closes
runs whose process on this machine has died. The exit code is 1 if a check
found an error.

example:
  convmixer doctor
"""


class DoctorConfig(Config):
    """The settings of the doctor."""

    close: tuple[str, ...] | None = Field(
        None, description="ids of runs that died on other hosts and are still open: close them as FAILED"
    )
    resend: bool = Field(
        False, description="send again the records and notifications that were set aside as they could not be sent"
    )


def parse_doctor(arguments: Sequence[str]) -> DoctorConfig:
    """Return what the doctor is to do besides its checks.

    Raises:
        UsageError: a setting is unknown or breaks its rule.
    """
    given = parse_arguments(arguments, command="doctor", description=DOCTOR, settings=DoctorConfig.build({}))
    return DoctorConfig.build(given)
