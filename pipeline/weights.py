"""A model's weights in a file: arrays in order, without pickle, written whole or not at all.

Keras' own HDF5 files are not used for it, since the HDF5 library can end the process where the disk is full.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.cache import write_whole


def write(path: Path, weights: Sequence[npt.NDArray]) -> None:
    """Keep what `model.get_weights()` gave.

    Raises:
        OSError: there is no room; what was there before still is.
    """
    file = io.BytesIO()
    np.savez(file, *weights)
    write_whole(path, file.getvalue())


def read(path: Path) -> list[npt.NDArray]:
    """What `model.set_weights` takes."""
    with np.load(path, allow_pickle=False) as arrays:
        return [arrays[f"arr_{place}"] for place in range(len(arrays.files))]
