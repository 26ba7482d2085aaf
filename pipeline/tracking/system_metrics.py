"""System metrics: what the machine does during a run, measured by MLflow and logged through the run's outbox."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

Log = Callable[[dict[str, float], int], None]  # takes metrics and their step


@contextmanager
def log_system_metrics(run_id: str, log: Log) -> Iterator[None]:
    """Measure every ten seconds, at the steps after those that the run has already."""
    monitor = _Monitor(run_id, log)
    monitor.start()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        monitor.finish()  # type: ignore[no-untyped-call]


class _Monitor(SystemMetricsMonitor):
    """MLflow's monitor without its calls to the server: MLflow's ends for good at the first one without an answer."""

    def __init__(self, run_id: str, log: Log) -> None:
        super().__init__(run_id, resume_logging=True)  # type: ignore[no-untyped-call]
        self._log = log

    def monitor(self) -> None:
        while True:
            for _ in range(self.samples_before_logging):
                self.collect_metrics()  # type: ignore[no-untyped-call]
                if self._shutdown_event.wait(self.sampling_interval):
                    return
            self.publish_metrics(self.aggregate_metrics())  # type: ignore[no-untyped-call]

    def publish_metrics(self, metrics: dict[str, float]) -> None:
        node = f"{self.node_id}/" if self.node_id else ""
        self._log({f"{self._metrics_prefix}{node}{name}": value for name, value in metrics.items()}, self._logging_step)
        self._logging_step += 1
        for monitor in self.monitors:
            monitor.clear_metrics()  # type: ignore[no-untyped-call]
