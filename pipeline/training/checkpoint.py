"""What training goes on from, in one file: written whole or not at all, and known by its digest to be whole."""

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from pipeline.runtime.errors import CorruptCheckpoint
from pipeline.runtime.files import fsync_path, make_private, write_atomic


def write_weights(path: Path, weights: Sequence[npt.NDArray]) -> None:
    """Keep what `model.get_weights()` gave.

    Raises:
        OSError: there is no room; what was there before still is.
    """
    file = io.BytesIO()
    np.savez(file, *weights)
    write_atomic(path, file.getvalue())


def read_weights(path: Path) -> list[npt.NDArray]:
    """What `model.set_weights` takes."""
    with np.load(path, allow_pickle=False) as arrays:
        return [arrays[f"arr_{place}"] for place in range(len(arrays.files))]


KEPT = 2  # the newest, and the one before in case the newest is damaged
DIGEST_BYTES = 64  # hexadecimal SHA-256 of what follows it in the file
PATTERN = "epoch-*.checkpoint"


@dataclass(frozen=True)
class TrainingState:
    """Training after a whole number of epochs."""

    epoch: int  # the last one that is finished, counted from 1
    history: Mapping[str, list[float]]  # a value an epoch
    variables: list[npt.NDArray]  # the model's, then the optimizer's, in Keras' order
    best_weights: list[npt.NDArray]  # the model's after its best epoch, in Keras' order


@dataclass(frozen=True)
class Checkpoint:
    """A state, and of which run it is."""

    run_id: str
    settings: Mapping[str, object]  # every setting, as YAML would hold it
    data: str  # the images' fingerprint
    state: TrainingState


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Put a checkpoint into a folder of the run's own, which is made, beside the one before; older ones go.

    Raises:
        OSError: it could not be written; those that were there still are.
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
    for old in [*checkpoint_files(folder)[KEPT:], *folder.glob("*.part")]:  # a kill in mid-write leaves such a part
        old.unlink(missing_ok=True)
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file.

    Raises:
        Damaged: the file was cut short or changed, or is none.
        OSError: it could not be read.
    """
    with open(path, "rb") as file:
        if file.read(DIGEST_BYTES) != _digest(file):
            raise CorruptCheckpoint(f"{path} is damaged: its content does not have the digest that it bears")
        file.seek(DIGEST_BYTES)
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return _load(arrays)
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise CorruptCheckpoint(f"{path} is no checkpoint: {error}") from None


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest epoch first; none where there is no folder."""
    return sorted(folder.glob(PATTERN), reverse=True)


def _dump(file: BinaryIO, checkpoint: Checkpoint) -> None:
    state = checkpoint.state
    about = {
        "run_id": checkpoint.run_id,
        "settings": checkpoint.settings,
        "data": checkpoint.data,
        "epoch": state.epoch,
        "history": state.history,
    }
    arrays = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    arrays |= _numbered("variable", state.variables) | _numbered("best", state.best_weights)
    file.write(bytes(DIGEST_BYTES))
    np.savez(file, **arrays)  # type: ignore[arg-type] # its next parameter is a bool
    file.seek(DIGEST_BYTES)
    digest = _digest(file)
    file.seek(0)
    file.write(digest)


def _load(arrays: Mapping[str, npt.NDArray]) -> Checkpoint:
    about = json.loads(arrays["about"].tobytes())
    variables, best = (
        [arrays[name] for name in sorted(arrays) if name.startswith(kind)] for kind in ("variable", "best")
    )
    state = TrainingState(about["epoch"], about["history"], variables, best)
    return Checkpoint(about["run_id"], about["settings"], about["data"], state)


def _numbered(kind: str, arrays: list[npt.NDArray]) -> dict[str, npt.NDArray]:
    return {f"{kind}{place:06d}": array for place, array in enumerate(arrays)}


def _digest(file: BinaryIO) -> bytes:
    """Of the rest of a file."""
    return hashlib.file_digest(file, "sha256").hexdigest().encode()  # type: ignore[arg-type] # a typeshed protocol
