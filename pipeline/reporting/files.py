"""What runs have left among their artifacts, fetched a few at a time: settings, predictions, tables, pictures."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow.artifacts import download_artifacts

from pipeline.config import Config, from_yaml
from pipeline.errors import UsageError
from pipeline.reporting.reading import Row

AT_ONCE = 8  # mostly waiting for a server, where the artifacts are on one
Read = TypeVar("Read")


def configs(rows: Iterable[Row]) -> dict[str, Config]:
    """The settings as they were used, from config.yaml, by the id of the run; none where there is no such file."""
    return _read(rows, "config.yaml", from_yaml)


def predictions(rows: Iterable[Row]) -> dict[str, pd.DataFrame]:
    """Tables with columns image, label and predicted, a row a test image, by the id of the run."""
    kinds = {"image": str, "label": np.int64, "predicted": np.int64}
    return _read(rows, "test_predictions.csv", lambda path: pd.read_csv(path, usecols=list(kinds), dtype=kinds))


def recalls(rows: Iterable[Row]) -> "dict[str, pd.Series[float]]":
    """Share of each class's test images that were recognized, by the id of the run."""
    return _read(rows, "per_class.csv", _recall)


def kernels(rows: Iterable[Row]) -> dict[str, bytes]:
    """PNG of the middle block's depthwise kernels, by the id of the run."""
    return _read(rows, "plots/depthwise_kernels.png", Path.read_bytes)


def right(table: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Whether each test image was recognized, (n,)."""
    return (table["label"] == table["predicted"]).to_numpy()


def _recall(path: Path) -> "pd.Series[float]":
    table = pd.read_csv(path, dtype={"class": str}, keep_default_na=False, na_values={"recall": [""]})
    return table.set_index("class")["recall"].astype(float)


def _read(rows: Iterable[Row], name: str, reader: Callable[[Path], Read]) -> dict[str, Read]:
    """What a reader makes of an artifact, by the id of the run; a missing or damaged artifact is left out."""

    def one(row: Row) -> Read | None:
        with TemporaryDirectory() as folder:
            try:
                path = Path(download_artifacts(artifact_uri=f"{row.artifacts}/{name}", dst_path=folder))
            except Exception:  # noqa: BLE001 - each kind of store raises its own
                return None
            try:
                return reader(path)
            except (OSError, UsageError, ValueError, KeyError):
                return None

    rows = list(rows)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(one, rows)
        return {row.id: value for row, value in zip(rows, found, strict=True) if value is not None}
