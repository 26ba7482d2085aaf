"""Checkpoint files: the state from which a training is resumed, written atomically and verified by a digest."""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.runtime.errors import CorruptCheckpoint
from pipeline.runtime.files import fsync_path, make_private, write_atomic

# checkpoint files to keep: the newest, and the one before in case the newest is damaged
GENERATIONS = 2
# hexadecimal SHA-256 of everything that follows it in the file
DIGEST_BYTES = 64
PATTERN = "epoch-*.checkpoint"


@dataclass(frozen=True)
class TrainingState:
    """State of a training after a whole number of epochs."""

    epoch: int  # the last finished one, counted from 1
    history: Mapping[str, list[float]]  # one value per metric and epoch
    variables: list[npt.NDArray]  # the model's, then the optimizer's, in Keras' order
    best_weights: list[npt.NDArray]  # the model's after its best epoch, in Keras' order


@dataclass(frozen=True)
class Checkpoint:
    """State of a training, with the run and the data that it belongs to."""

    run_id: str
    settings: Mapping[str, object]  # every setting, as YAML would hold it
    fingerprint: str  # of the data set
    state: TrainingState


@dataclass(frozen=True)
class _Metadata:
    """What a checkpoint file holds besides arrays, as JSON."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

    run_id: str
    settings: dict[str, object]
    fingerprint: str
    epoch: int
    history: dict[str, list[float]]

    def __post_init__(self) -> None:
        if self.epoch < 1 or any(len(values) != self.epoch for values in self.history.values()):
            raise ValueError("its history is not one value per metric and epoch")


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint into the run's own folder, and remove all but the newest `GENERATIONS`.

    The folder is created if needed.

    Raises:
        OSError: The checkpoint could not be written; the earlier ones are unchanged.
    """
    make_private(folder)
    path = folder / f"epoch-{checkpoint.state.epoch:06d}.checkpoint"
    descriptor, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with open(descriptor, "w+b") as file:
            _dump(file, checkpoint)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    fsync_path(folder)
    # a process that is killed while it writes leaves a .part file
    for old in [*checkpoint_files(folder)[GENERATIONS:], *folder.glob("*.part")]:
        old.unlink(missing_ok=True)
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint file.

    Raises:
        CorruptCheckpoint: The file was truncated or changed, or is not a checkpoint.
        OSError: The file could not be read.
    """
    with open(path, "rb") as file:
        if file.read(DIGEST_BYTES) != _digest(file):
            raise CorruptCheckpoint(f"{path} is damaged: its content does not match its digest")
        file.seek(DIGEST_BYTES)
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return _load(arrays)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise CorruptCheckpoint(f"{path} is not a checkpoint: {place}: {first['msg']}") from None
        except Exception as error:  # noqa: BLE001 - zipfile, zlib, NumPy and JSON raise a dozen kinds for odd content
            raise CorruptCheckpoint(f"{path} is not a checkpoint: {type(error).__name__}: {error}") from None


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the checkpoint files of a folder, newest epoch first; an empty list if there is no folder."""
    return sorted(folder.glob(PATTERN), reverse=True)


def write_weights(path: Path, weights: Sequence[npt.NDArray]) -> None:
    """Write the weights that `model.get_weights()` returned to a file, atomically.

    Raises:
        OSError: The disk is full, for example; what the file held before is unchanged.
    """
    file = io.BytesIO()
    np.savez(file, *weights)
    write_atomic(path, file.getvalue())


def read_weights(path: Path) -> list[npt.NDArray]:
    """Read weights in the form that `model.set_weights` takes."""
    with np.load(path, allow_pickle=False) as arrays:
        return [arrays[f"arr_{index}"] for index in range(len(arrays.files))]


def _dump(file: BinaryIO, checkpoint: Checkpoint) -> None:
    """Write the digest and, behind it, an .npz archive: JSON metadata and one array per variable."""
    state = checkpoint.state
    history = {name: list(values) for name, values in state.history.items()}
    metadata = _Metadata(checkpoint.run_id, dict(checkpoint.settings), checkpoint.fingerprint, state.epoch, history)
    arrays = {"metadata": np.frombuffer(json.dumps(asdict(metadata)).encode(), np.uint8)}
    arrays |= _numbered("variable", state.variables) | _numbered("best", state.best_weights)
    file.write(bytes(DIGEST_BYTES))
    np.savez(file, **arrays)  # type: ignore[arg-type] # its next parameter is a bool
    file.seek(DIGEST_BYTES)
    digest = _digest(file)
    file.seek(0)
    file.write(digest)


def _load(arrays: Mapping[str, npt.NDArray]) -> Checkpoint:
    """Return the checkpoint in an .npz archive."""
    metadata = TypeAdapter(_Metadata).validate_json(arrays["metadata"].tobytes())
    variables, best_weights = (
        [arrays[name] for name in sorted(arrays) if name.startswith(prefix)] for prefix in ("variable", "best")
    )
    if not all(np.issubdtype(array.dtype, np.number) for array in (*variables, *best_weights)):
        raise ValueError("an array holds no numbers")
    state = TrainingState(metadata.epoch, metadata.history, variables, best_weights)
    return Checkpoint(metadata.run_id, metadata.settings, metadata.fingerprint, state)


def _numbered(prefix: str, arrays: list[npt.NDArray]) -> dict[str, npt.NDArray]:
    """Return arrays under names that sort in the arrays' order."""
    return {f"{prefix}{index:06d}": array for index, array in enumerate(arrays)}


def _digest(file: BinaryIO) -> bytes:
    """Return the digest of the rest of a file."""
    return hashlib.file_digest(file, "sha256").hexdigest().encode()  # type: ignore[arg-type] # a typeshed protocol
