"""How the filters of one block form: kept at a few epochs beside the checkpoints of a run, gathered at its end."""

import logging
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.cache import make_private
from pipeline.printable import printable

log = logging.getLogger(__name__)


def epochs_drawn(epochs: int, steps: int) -> list[int]:
    """At most so many epochs from the first to the last, in about equal ratios: filters form early."""
    if steps < 2:
        return [epochs] * steps
    return sorted({int(epoch) for epoch in np.geomspace(1, epochs, steps).round()})


class FilterSteps:
    """Kernels (k, k, filters, 1) by epoch, in files, so that a run which goes on after a kill finds them again.

    A run that goes on upon another machine finds none of the earlier ones, and draws what it has.
    """

    def __init__(self, folder: Path, *, epochs: int, steps: int) -> None:
        self._folder = folder
        self._wanted = frozenset(epochs_drawn(epochs, steps))

    def wants(self, epoch: int) -> bool:
        """Whether the kernels after an epoch, counted from 1, are to be kept."""
        return epoch in self._wanted

    def keep(self, epoch: int, kernels: npt.NDArray) -> None:
        """Put them into a file, whole or not at all; one that cannot be written costs a warning."""
        path = self._folder / f"filters-{epoch:06d}.npy"
        part = path.with_suffix(".part")
        try:
            make_private(self._folder)
            with open(part, "wb") as file:
                np.save(file, kernels, allow_pickle=False)
            os.replace(part, path)
        except OSError as error:
            log.warning("warning: the filters of epoch %s could not be kept: %s", epoch, printable(error.strerror))

    def kept(self) -> dict[int, npt.NDArray]:
        """All that are there, by epoch."""
        files = sorted(self._folder.glob("filters-*.npy"))
        return {int(path.stem.removeprefix("filters-")): np.load(path, allow_pickle=False) for path in files}
