"""The formats that a model is exported to: how each is written, loaded by its own runtime, compared and timed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy.typing as npt

from pipeline.config.commands import ExportFormat
from pipeline.serving.export.comparison import Predict
from pipeline.serving.export.tensorflow_models import load_litert, load_saved_model, write_litert, write_saved_model


@dataclass(frozen=True)
class Source:
    """A model to export, and what its exports need besides it."""

    model: keras.Model  # raw pixels (b, h, w, c), 0 to 255 -> probabilities (b, classes)
    metadata: dict[str, Any]  # stored in each file
    representative: npt.NDArray  # images (n, h, w, c) by which activations are quantized


Writer = Callable[[Source, Path], None]


@dataclass(frozen=True)
class Format:
    """One format: the name of its file or folder, and the functions that write and load it."""

    path: str
    writers: dict[str, Writer]  # by a name of the way; each is for models that the ones before it do not suit
    load: Callable[[Path], Predict]


def _write_onnx(source: Source, file: Path) -> None:
    # not above, like the next one: an extra, which the other formats do not need
    from pipeline.serving.export.onnx_model import write_onnx

    write_onnx(source.model, file, metadata=source.metadata)


def _load_onnx(file: Path) -> Predict:
    from pipeline.serving.export.onnx_model import load_onnx

    return load_onnx(file)


def _write_litert(source: Source, file: Path) -> None:
    write_litert(source.model, file, metadata=source.metadata)


def _write_full_integer(source: Source, file: Path) -> None:
    write_litert(source.model, file, metadata=source.metadata, quantize=True, representative=source.representative)


def _write_dynamic_range(source: Source, file: Path) -> None:
    write_litert(source.model, file, metadata=source.metadata, quantize=True)


def _write_saved_model(source: Source, folder: Path) -> None:
    write_saved_model(source.model, folder, metadata=source.metadata)


FORMATS: dict[ExportFormat, Format] = {
    "onnx": Format("model.onnx", {"float32": _write_onnx}, _load_onnx),
    "litert": Format("model.tflite", {"float32": _write_litert}, load_litert),
    "litert_int8": Format(
        "model_int8.tflite", {"full integer": _write_full_integer, "dynamic range": _write_dynamic_range}, load_litert
    ),
    "saved_model": Format("saved_model", {"float32": _write_saved_model}, load_saved_model),
}
