"""The energy of a run, as the metric `energy_kwh`, where the machine counts it; a run that is resumed adds up."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pipeline.runtime.energy import EnergyMeter
from pipeline.runtime.errors import Unavailable
from pipeline.runtime.heartbeat import heartbeat
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.run import TrackedRun
from pipeline.tracking.tags import Tag

METRIC = "energy_kwh"
SAMPLE_SECONDS = 10.0
LOG_SECONDS = 60.0
FLUSH_SECONDS = 1.0  # for what a process before this one has left


@contextmanager
def log_energy(
    run: TrackedRun, *, is_resumed: bool, meter: EnergyMeter | None = None, sample_seconds: float = SAMPLE_SECONDS
) -> Iterator[None]:
    """Context manager: log what the machine takes, once a minute and at the end, from a thread.

    Args:
        run: The run.
        is_resumed: Whether another process has worked on it before. If it has logged no energy, this one logs none
            either, as the sum is not known.
        meter: Measures; None is that of this machine, if it has one.
        sample_seconds: Between two samples.
    """
    meter = meter or EnergyMeter.find()
    if meter is None:
        yield
        return
    energy = _EnergyLog(run, meter, is_resumed=is_resumed)
    # at once, so that a process that resumes the run sees that it is counted
    with suppress(Exception):
        energy.log()
    try:
        with heartbeat(energy.sample, seconds=sample_seconds):
            yield
    finally:
        with suppress(Exception):
            energy.log()


class _EnergyLog:
    """The sum of the energy of all processes of a run."""

    def __init__(self, run: TrackedRun, meter: EnergyMeter, *, is_resumed: bool) -> None:
        self._run, self._meter = run, meter
        # kWh of the processes before this one: None before it was asked, NaN if it is not known
        self._before = None if is_resumed else 0.0
        self._last = 0.0
        self._is_over = False
        self._next_log = time.monotonic() + LOG_SECONDS

    def sample(self) -> None:
        """Measure, and log once in a while."""
        self._meter.sample()
        if time.monotonic() >= self._next_log:
            self._next_log = time.monotonic() + LOG_SECONDS
            self.log()

    def log(self) -> None:
        """Log the sum; NaN, once, if it is not known any more.

        Raises:
            Unavailable: The sum of the processes before is not known yet.
        """
        if self._is_over:
            return
        self._meter.sample()
        if self._before is None:
            self._before = self._read_before()
        if math.isnan(self._before):
            self._is_over = True
            return
        kwh = self._meter.kwh()
        self._is_over = kwh is None
        if not self._before and not self._last:
            self._run.set_tags({Tag.ENERGY_OF: self._meter.parts})
        self._last = math.nan if kwh is None else self._before + kwh
        self._run.log_metrics({METRIC: self._last})

    def _read_before(self) -> float:
        """Return the kWh that the run has so far; NaN if it has none."""
        self._run.outbox.flush(unavailable_seconds=0.0, at_most=FLUSH_SECONDS)
        if reason := self._run.outbox.failure():
            raise Unavailable(reason)
        return float(TrackingClient().get_run(self._run.id).data.metrics.get(METRIC, math.nan))
