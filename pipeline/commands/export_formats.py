"""Write a model in each format and compare it with Keras. Importing this module imports TensorFlow."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.commands import TOLERANCES, ExportConfig, ExportFormat
from pipeline.data.dataset import Dataset, Split
from pipeline.data.subset import Subset
from pipeline.evaluation.metrics import accuracy
from pipeline.evaluation.robustness import evenly_spaced
from pipeline.runtime.console import Console
from pipeline.runtime.files import list_files
from pipeline.runtime.text import one_line
from pipeline.serving.export.comparison import Predict, compare, in_batches, predict_on_cpu
from pipeline.serving.export.formats import FORMATS, Source, Writer
from pipeline.tracking.models import LoggedModel
from pipeline.training.benchmark import median_seconds


@dataclass(frozen=True)
class Export:
    """What came of one format; numbers are missing if it could not be written or loaded."""

    format: str
    numbers: str  # float32, or how they are quantized
    file: str
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


def describe_model(model: LoggedModel) -> dict[str, Any]:
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


def export_all(
    model: LoggedModel,
    dataset: Dataset,
    subset: Subset,
    settings: ExportConfig,
    console: Console,
    *,
    log: Callable[[Path], None],
) -> list[Export]:
    """Write and compare each format, print a line of the table for each, and log what is kept.

    Args:
        model: The model.
        dataset: Holds the images by which activations are quantized.
        subset: The images to compare on.
        settings: Of the export.
        console: Shows the table.
        log: Stores a file or folder.
    """
    rows = evenly_spaced(len(subset.split), settings.images)
    pixels = subset.split.take(rows)[0]
    images = _Images(pixels, subset.labels[rows], predict_on_cpu(model.model, pixels))
    source = Source(
        model.model, describe_model(model), _representative(dataset, subset.split, settings.representative_images)
    )
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
                    log(file)
                    break
    console.print("")
    return [keras, *exports]


def _export(
    name: ExportFormat, way: str, write: Writer, source: Source, file: Path, images: _Images, tolerance: float
) -> Export:
    """Write one format in one way, load it by its own runtime, and compare it."""
    try:
        write(source, file)
        predict = FORMATS[name].load(file)
        probabilities = in_batches(predict, images.pixels)
        found = compare(images.keras, probabilities)
    except Exception as error:  # noqa: BLE001 - each library raises its own; the other formats may do
        return Export(name, way, file.name, kept=False, tolerance=tolerance, reason=one_line(error, most=300))
    kept = found.is_within(tolerance)
    reason = f"a probability differs by {found.max_difference:.2g}, more than the tolerance of {tolerance:g}"
    return Export(
        name,
        way,
        file.name,
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
    return sum(part.stat().st_size for part in list_files(file))


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
