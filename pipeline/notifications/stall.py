"""The stall watch: says once when no epoch has ended for several times as long as usual, and once when one does."""

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pipeline.runtime.heartbeat import heartbeat

FACTOR = 5.0  # times the usual
LEAST_SECONDS = 300.0  # a swap of memory or a slow disk may hold up quick epochs for minutes
CHECK_SECONDS = 5.0
REMEMBERED = 50  # of the last times between epochs


class StallWatch:
    """Watches the times between epochs, of which each is reported by `beat`.

    Args:
        on_stall: Called from another thread, with the seconds since the last epoch, and the usual ones.
        on_recovery: Called at the first epoch after that, with the seconds that it took.
        usual: What is usual among the last times between epochs: their median, or the longest.
    """

    def __init__(
        self,
        on_stall: Callable[[float, float], None],
        on_recovery: Callable[[float], None],
        *,
        usual: Callable[[Sequence[float]], float] = statistics.median,
        factor: float = FACTOR,
        least_seconds: float = LEAST_SECONDS,
    ) -> None:
        self._on_stall, self._on_recovery = on_stall, on_recovery
        self._usual, self._factor, self._least_seconds = usual, factor, least_seconds
        self._lock = threading.Lock()
        self._between: deque[float] = deque(maxlen=REMEMBERED)
        self._last = time.monotonic()
        self._is_stalled = False

    @contextmanager
    def watching(self, *, check_seconds: float = CHECK_SECONDS) -> Iterator[None]:
        """Context manager: watch until the end; the first epoch counts from here."""
        self._last = time.monotonic()
        with heartbeat(self._check, seconds=check_seconds):
            yield

    def beat(self) -> None:
        """Report that an epoch has ended."""
        with self._lock:
            now = time.monotonic()
            seconds, self._last = now - self._last, now
            was_stalled, self._is_stalled = self._is_stalled, False
            if not was_stalled:
                self._between.append(seconds)
        if was_stalled:
            self._on_recovery(seconds)

    def _check(self) -> None:
        with self._lock:
            if self._is_stalled or not self._between:
                return
            seconds, usual = time.monotonic() - self._last, self._usual(self._between)
            self._is_stalled = seconds > max(self._least_seconds, self._factor * usual)
            is_stalled = self._is_stalled
        if is_stalled:
            self._on_stall(seconds, usual)
