"""Count what a served model does, as Prometheus reads it; needs prometheus-client, and counts nothing without it.

Served models contain a copy of this file.
"""

import importlib
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

try:
    # It reads PROMETHEUS_MULTIPROC_DIR when it is imported.
    prometheus_client: ModuleType | None = importlib.import_module("prometheus_client")
except ImportError:
    prometheus_client = None

MISSING = "metrics need prometheus-client, in the environment of the server: pip install prometheus-client\n"
# Upper limits of buckets
SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
IMAGES = (1, 2, 4, 8, 16, 32)


class _Histogram(Protocol):
    def observe(self, amount: float) -> None: ...


class ServingMetrics:
    """Counts the requests of one process.

    With PROMETHEUS_MULTIPROC_DIR, an empty folder, the workers of a server count together, in files that they share.
    """

    def __init__(self) -> None:
        self._registry: Any = None
        if prometheus_client is None:
            return
        self._registry = registry = prometheus_client.CollectorRegistry()
        counter, histogram = prometheus_client.Counter, prometheus_client.Histogram
        self._requests = counter(
            "convmixer_serving_requests_total", "Requests answered, by status.", ["status"], registry=registry
        )
        self._errors = counter(
            "convmixer_serving_errors_total", "Requests refused or failed, by kind.", ["kind"], registry=registry
        )
        self._seconds = self._histogram(
            histogram, "convmixer_serving_request_seconds", "Time from the whole body to the answer.", SECONDS
        )
        self._images = self._histogram(
            histogram, "convmixer_serving_batch_images", "Images that the network was given at once.", IMAGES
        )
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            # It reads the files of all workers, this one's included.
            self._registry = prometheus_client.CollectorRegistry()
            importlib.import_module("prometheus_client.multiprocess").MultiProcessCollector(self._registry)
        else:
            # memory, processor time and open files
            prometheus_client.ProcessCollector(registry=registry)

    def _histogram(self, kind: Any, name: str, text: str, buckets: Sequence[float]) -> _Histogram:
        return kind(name, text, buckets=buckets, registry=self._registry)

    def count_request(self, status: int, seconds: float, error: str) -> None:
        """Count an answer; `error` is the kind of error, or empty."""
        if self._registry is None:
            return
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)
        if error:
            self._errors.labels(error).inc()

    def count_batch(self, images: int) -> None:
        """Count a batch of the network."""
        if self._registry is not None:
            self._images.observe(images)

    def text(self) -> tuple[int, str, bytes]:
        """Return status, content type and body of what Prometheus reads."""
        if prometheus_client is None:
            return 501, "text/plain; charset=utf-8", MISSING.encode()
        return 200, prometheus_client.CONTENT_TYPE_LATEST, prometheus_client.generate_latest(self._registry)
