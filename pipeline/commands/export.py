"""The command `export`: write a logged model in other formats, and keep those that are proven to answer the same.

Each file is loaded by the runtime that it is made for and compared with the Keras model. The files and a table of the
comparison are logged to the MLflow run that trained the model, below exports/; another export replaces them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.config.commands import TOLERANCES, ExportCommand, ExportConfig, ExportFormat
from pipeline.data.dataset import Dataset, Split
from pipeline.data.subset import Subset, build_subset, check_not_trained_on, reload_dataset
from pipeline.evaluation.metrics import accuracy
from pipeline.evaluation.robustness import evenly_spaced
from pipeline.runtime.console import Console
from pipeline.runtime.errors import NotEqual
from pipeline.runtime.text import count, one_line
from pipeline.serving.export.comparison import Predict, compare, in_batches, predict_on_cpu
from pipeline.serving.export.formats import FORMATS, Source, Writer
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.lifecycle import start_run
from pipeline.tracking.models import LoggedModel, find_model, load_model, resolve_model_uri
from pipeline.tracking.ownership import require_server
from pipeline.tracking.project_run import ProjectRun, close_if_unused
from pipeline.tracking.query import TrainingRun, get_training_run
from pipeline.tracking.run import TrackedRun
from pipeline.tracking.tags import Role, Tag
from pipeline.training.benchmark import median_seconds

ARTIFACT_FOLDER = "exports"
TABLE = f"{ARTIFACT_FOLDER}/exports.csv"
METADATA = f"{ARTIFACT_FOLDER}/model.json"


@dataclass(frozen=True)
class Export:
    """What came of one format; numbers are missing if it could not be written or loaded."""

    format: str
    numbers: str  # float32, or how they are quantized
    file: str  # its path among the artifacts
    kept: bool
    max_difference: float = np.nan  # of a probability
    tolerance: float = np.nan
    equal_classes: float = np.nan  # share of the images whose most probable class is the same
    accuracy: float = np.nan
    bytes: float = np.nan
    latency_1_ms: float = np.nan
    latency_16_ms: float = np.nan
    images: int = 0
    reason: str = ""  # why it was refused


@dataclass(frozen=True)
class _Images:
    """Images to compare on, and what is known of them."""

    pixels: npt.NDArray  # (n, h, w, c)
    labels: npt.NDArray  # (n,)
    keras: npt.NDArray  # probabilities (n, classes) of the Keras model


def run_export(command: ExportCommand, console: Console) -> list[Export]:
    """Export a model, log what is kept to the run that trained it, and return what came of each format.

    The export has a run of its own below that run, the one that `mlflow run` opened or a new one.

    Raises:
        NotEqual: A format was refused; the others have been kept.
        UsageError: The model or the images do not exist, cannot be read, or do not go together.
    """
    with require_server():
        client = TrackingClient()
        uri = resolve_model_uri(client, command.model)
        training_run = get_training_run(client, str(find_model(client, uri).source_run_id))
    training, settings = training_run.run.info, command.settings

    with close_if_unused(ProjectRun.find_below(training.run_id)):
        dataset = _load_dataset(training_run, settings)
        model = load_model(client, uri)
        split = "all" if settings.dataset else "validation"
        subset = build_subset(dataset, split, classes=model.classes, image_shape=model.image_shape)
        console.print(
            f"model    {model.model_id} of run {training.run_id} ({training.run_name})",
            f"images   {subset}: {count(min(settings.images, len(subset.split)), 'image')}",
        )
        with start_run(
            role=Role.EXPORT,
            parent=training.run_id,
            experiment_id=training.experiment_id,
            tags={Tag.EXPORT_MODEL: uri, Tag.EXPORT_FORMATS: settings.text("formats")},
        ) as run:
            run.set_name(f"export to {', '.join(settings.formats)}")
            for notice in run.notices:
                console.print(notice)
            logged_to = TrackedRun(training.run_id, run.outbox)
            metadata = _metadata(model)
            logged_to.log_text(METADATA, json.dumps(metadata, indent=2))
            exports = _export_all(model, metadata, dataset, subset, settings, logged_to, console)
            logged_to.log_table(TABLE, _table(exports), view=_table(exports))
            logged_to.write_model_card()
            kept = {export.format for export in exports if export.kept}
            # of a format that was tried in several ways, the reason of the last
            refused = {export.format: export.reason for export in exports if export.format not in kept}
            if refused:
                raise NotEqual("; ".join(f"{name} refused: {reason}" for name, reason in refused.items()))

    if pending := run.outbox.pending():
        console.print(pending)
    console.print(f"run      {training.run_id}: {ARTIFACT_FOLDER} among its artifacts")
    return exports


def _load_dataset(training_run: TrainingRun, settings: ExportConfig) -> Dataset:
    """Load the images to compare on.

    Raises:
        UsageError: They cannot be read, or the model was trained on all of them.
    """
    config = training_run.config
    dataset = reload_dataset(config.data, seed=config.seed, dataset=settings.dataset, image_size=None)
    if settings.dataset is None:
        has_validation = config.folds is None and not config.refit
        check_not_trained_on(dataset, "validation", fingerprint=training_run.fingerprint, has_validation=has_validation)
    return dataset


def _metadata(model: LoggedModel) -> dict[str, Any]:
    """Return what is stored in each file, and beside them for runtimes that do not show it, such as a browser's."""
    return {
        "classes": list(model.classes),
        "resize": model.resize,
        "image_size": list(model.image_shape[:2]),
        "channels": model.image_shape[2],
        "input": "images: float32 (n, height, width, channels), raw pixels 0 to 255, RGB where there are 3 channels",
        "output": "probabilities: float32 (n, classes)",
        "model": model.model_id,
    }


def _export_all(
    model: LoggedModel,
    metadata: dict[str, Any],
    dataset: Dataset,
    subset: Subset,
    settings: ExportConfig,
    run: TrackedRun,
    console: Console,
) -> list[Export]:
    """Write, compare and log each format, and print a line of the table for each."""
    rows = evenly_spaced(len(subset.split), settings.images)
    pixels = subset.split.take(rows)[0]
    images = _Images(pixels, subset.labels[rows], predict_on_cpu(model.model, pixels))
    source = Source(model.model, metadata, _representative(dataset, subset.split, settings.representative_images))
    keras = Export(
        "keras",
        "float32",
        file="",
        kept=True,
        max_difference=0.0,
        equal_classes=1.0,
        accuracy=accuracy(images.keras, images.labels),
        images=len(pixels),
        latency_1_ms=_latency_ms(model.predict_proba, pixels, batch=1),
        latency_16_ms=_latency_ms(model.predict_proba, pixels, batch=16),
    )
    console.print("", HEADER, _line(keras))
    exports = []
    with TemporaryDirectory() as temporary:
        for name in settings.formats:
            tolerance = TOLERANCES[name] if settings.tolerance is None else settings.tolerance
            file = Path(temporary) / FORMATS[name].path
            for way, write in FORMATS[name].writers.items():
                exports.append(_export(name, way, write, source, file, images, tolerance))
                console.print(_line(exports[-1]))
                if exports[-1].kept:
                    _log(run, file)
                    break
    console.print("")
    return [keras, *exports]


def _export(
    name: ExportFormat, way: str, write: Writer, source: Source, file: Path, images: _Images, tolerance: float
) -> Export:
    """Write one format in one way, load it by its own runtime, and compare it."""
    artifact = f"{ARTIFACT_FOLDER}/{file.name}"
    try:
        write(source, file)
        predict = FORMATS[name].load(file)
        probabilities = in_batches(predict, images.pixels)
        found = compare(images.keras, probabilities)
    except Exception as error:  # noqa: BLE001 - each library raises its own; the other formats may do
        return Export(name, way, artifact, kept=False, tolerance=tolerance, reason=one_line(error, most=300))
    kept = found.is_within(tolerance)
    reason = f"a probability differs by {found.max_difference:.2g}, more than the tolerance of {tolerance:g}"
    return Export(
        name,
        way,
        artifact,
        kept=kept,
        max_difference=found.max_difference,
        tolerance=tolerance,
        equal_classes=found.equal_classes,
        accuracy=accuracy(probabilities, images.labels),
        bytes=_size(file),
        images=found.images,
        reason="" if kept else reason,
        latency_1_ms=_latency_ms(predict, images.pixels, batch=1),
        latency_16_ms=_latency_ms(predict, images.pixels, batch=16),
    )


def _latency_ms(predict: Predict, images: npt.NDArray, *, batch: int) -> float:
    """Return the median time in milliseconds from so many images to their probabilities."""
    resized = np.resize(images, (batch, *images.shape[1:]))
    return 1000 * median_seconds(lambda: predict(resized))


def _representative(dataset: Dataset, compared: Split, most: int) -> npt.NDArray:
    """Return images (n, h, w, c) to quantize by: some for training, or of those that are compared if there are none."""
    split = dataset.train if len(dataset.train) else compared
    return split.take(evenly_spaced(len(split), most))[0]


def _size(file: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(part.stat().st_size for part in _files(file))


def _files(file: Path) -> Sequence[Path]:
    return sorted(part for part in file.rglob("*") if part.is_file()) if file.is_dir() else [file]


def _log(run: TrackedRun, file: Path) -> None:
    """Log a file, or a folder with all files in it."""
    for part in _files(file):
        run.log_file(f"{ARTIFACT_FOLDER}/{part.relative_to(file.parent).as_posix()}", part)


def _table(exports: Sequence[Export]) -> pd.DataFrame:
    return pd.DataFrame([vars(export) for export in exports])


HEADER = (
    f"{'format':<12}{'difference':>11}{'tolerance':>11}{'same class':>12}{'accuracy':>10}{'MB':>8}"
    f"{'1 image':>10}{'16 images':>11}  kept"
)


def _line(export: Export) -> str:
    """Return the line of the terminal's table for one format."""
    if np.isnan(export.max_difference) and not export.images:
        return f"{export.format:<12}{'':>73}  no, {export.numbers}"
    tolerance = "" if np.isnan(export.tolerance) else f"{export.tolerance:g}"
    megabytes = "" if np.isnan(export.bytes) else f"{export.bytes / 1e6:.2f}"
    return (
        f"{export.format:<12}{export.max_difference:>11.1e}{tolerance:>11}{export.equal_classes:>12.2%}"
        f"{export.accuracy:>10.2%}{megabytes:>8}{export.latency_1_ms:>7.1f} ms{export.latency_16_ms:>8.1f} ms  "
        f"{'yes' if export.kept else 'no'}, {export.numbers}"
    )
