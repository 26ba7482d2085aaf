"""Energy: what the machine's counters say that its GPUs, processors and memory have taken. Nothing is estimated.

NVIDIA's driver counts the energy of each GPU (`nvmlDeviceGetTotalEnergyConsumption`, from Volta on), and Linux that of
each processor package, and of the memory where the processor counts it (RAPL, `/sys/class/powercap`, which most systems
let root alone read). The counters know no processes: all that runs on the machine counts.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pynvml

POWERCAP = Path("/sys/class/powercap")
JOULES_PER_KWH = 3_600_000.0
# Two readings that lie farther apart may have missed that a counter began anew
MAX_GAP_SECONDS = 300.0
# What no part takes; after a suspension, for example, a counter begins anew, which looks like an overflow
MAX_WATTS = 5000.0
READ_ERRORS = (OSError, ValueError, pynvml.NVMLError)


@dataclass
class Counter:
    """A counter of energy since some moment.

    Attributes:
        name: The part of the machine.
        read: Returns joules.
        wraps_at: Joules after which it begins anew; None if it never does.
    """

    name: str
    read: Callable[[], float]
    wraps_at: float | None = None
    last: float = field(init=False)

    def __post_init__(self) -> None:
        self.last = self.read()


class EnergyMeter:
    """Adds up the energy since it was made; `sample` is to be called every few seconds.

    Args:
        counters: Whose energy.
        clock: Returns seconds, those in which the machine was suspended included.
    """

    def __init__(
        self,
        counters: Sequence[Counter],
        *,
        clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._counters, self._clock = counters, clock
        self._sampled = clock()
        self._joules: float | None = 0.0

    @classmethod
    def find(
        cls, *, powercap: Path = POWERCAP, nvml: Any = pynvml, environ: Mapping[str, str] = os.environ
    ) -> Self | None:
        """Return a meter of what can be read on this machine; None if nothing can.

        Where a GPU that the process may use has no counter there is no meter: the rest would be less than half of it.

        Args:
            powercap: The folder of RAPL's counters.
            nvml: NVIDIA's library, as pynvml.
            environ: Its CUDA_VISIBLE_DEVICES names the GPUs that the process may use.
        """
        try:
            counters = [*_gpu_counters(nvml, environ.get("CUDA_VISIBLE_DEVICES")), *_rapl_counters(powercap)]
        except READ_ERRORS:
            return None
        return cls(counters) if counters else None

    @property
    def parts(self) -> str:
        """Return the names of the parts of the machine that are counted."""
        return ", ".join(counter.name for counter in self._counters)

    def sample(self) -> None:
        """Add what has been taken since the last time."""
        now = self._clock()
        seconds, self._sampled = now - self._sampled, now
        for counter in self._counters:
            joules = self._since_last(counter, seconds)
            if self._joules is not None:
                self._joules = None if joules is None else self._joules + joules

    def kwh(self) -> float | None:
        """Return the energy up to the last sample, in kWh; None if a counter has failed, as a part is unknown then."""
        return None if self._joules is None else self._joules / JOULES_PER_KWH

    @staticmethod
    def _since_last(counter: Counter, seconds: float) -> float | None:
        """Return the joules since the last sample, or None if they are not known."""
        try:
            now = counter.read()
        except READ_ERRORS:
            return None
        joules, counter.last = now - counter.last, now
        if joules < 0 and counter.wraps_at is not None:
            joules += counter.wraps_at
        is_known = seconds <= MAX_GAP_SECONDS and 0 <= joules <= MAX_WATTS * max(seconds, 1.0)
        return joules if is_known else None


def _gpu_counters(nvml: Any, visible: str | None) -> list[Counter]:
    """Return the counters of the GPUs that the process may use.

    Raises:
        pynvml.NVMLError: One of them has none, or its name is unknown.
    """
    if visible is not None and visible.split(",")[0].strip() in {"", "-1", "NoDevFiles"}:
        return []
    try:
        nvml.nvmlInit()
    except pynvml.NVMLError:
        # no driver
        return []
    names = range(nvml.nvmlDeviceGetCount()) if visible is None else [name.strip() for name in visible.split(",")]
    return [_gpu_counter(nvml, name) for name in names]


def _gpu_counter(nvml: Any, name: int | str) -> Counter:
    """Return the counter of a GPU by its index or UUID."""
    is_index = isinstance(name, int) or name.isdecimal()
    device = nvml.nvmlDeviceGetHandleByIndex(int(name)) if is_index else nvml.nvmlDeviceGetHandleByUUID(name)
    return Counter(f"GPU {name}", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1e3)


def _rapl_counters(powercap: Path) -> list[Counter]:
    """Return the counters of the processor packages and of their memory, as far as they can be read.

    Other parts are in these: the cores in their package, and all packages in `psys`.
    """
    counters = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        with suppress(*READ_ERRORS):
            name = (folder / "name").read_text().strip()
            if name.startswith("package") or name == "dram":
                # of the zone of each package, intel-rapl:0:1 for example
                package = folder.name.split(":")[1]
                counters.append(
                    Counter(
                        f"dram-{package}" if name == "dram" else name,
                        lambda file=folder / "energy_uj": int(file.read_text()) / 1e6,  # type: ignore[misc]
                        int((folder / "max_energy_range_uj").read_text()) / 1e6,
                    )
                )
    return counters
