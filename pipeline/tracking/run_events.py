"""Events of a run in MLflow, for those who are to be notified: its end, and a training that has stalled."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from pipeline.notifications.events import Kind, Subject, make_event
from pipeline.notifications.notifier import Notifier
from pipeline.notifications.stall import StallWatch
from pipeline.runtime.errors import Diverged, PipelineError, Stopped
from pipeline.runtime.text import format_duration
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.experiment_page import run_url, ui_command
from pipeline.tracking.run import TrackedRun
from pipeline.tracking.tags import Role


class RunEvents:
    """Sends events about one run; costs nothing where nobody is to be notified."""

    def __init__(self, notifier: Notifier, run: TrackedRun, role: Role) -> None:
        self._notifier, self._run, self._role = notifier, run, role
        self._experiment = self._url = ""
        self._watch: StallWatch | None = None
        if notifier.has_receivers:
            # it is only shown
            with suppress(Exception):
                self._experiment = TrackingClient().experiment_name(run.experiment_id)
                self._url = "" if ui_command() else run_url(run.experiment_id, run.id)

    def send(self, kind: Kind, text: str, *, reason: str = "", metrics: Mapping[str, float] | None = None) -> None:
        """Send an event; see `make_event`."""
        if self._notifier.has_receivers:
            subject = Subject(str(self._role), self._run.id, self._run.name, self._experiment, self._url)
            self._notifier.send(make_event(kind, subject, text, reason=reason, metrics=metrics))

    def send_failure(self, error: BaseException) -> None:
        """Send that an exception has ended the run."""
        reason = str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
        if isinstance(error, Diverged):
            self.send("diverged", f"diverged: {reason}", reason=reason)
        elif isinstance(error, Stopped | KeyboardInterrupt):
            reason = str(error) or "SIGINT"
            self.send("stopped", f"stopped by {reason}", reason=f"by {reason}")
        else:
            self.send("failed", f"failed: {reason}", reason=reason)

    @contextmanager
    def watch_epochs(self, *, usual: Callable[[Sequence[float]], float] = statistics.median) -> Iterator[None]:
        """Send it if `beat` is not called for several times as long as usual, and if it is after that.

        Args:
            usual: See `StallWatch`.
        """
        if not self._notifier.has_receivers:
            yield
            return
        self._watch = StallWatch(self._on_stall, self._on_recovery, usual=usual)
        with self._watch.watching():
            yield
        self._watch = None

    def beat(self) -> None:
        """Take note that an epoch has ended."""
        if self._watch:
            self._watch.beat()

    def _on_stall(self, seconds: float, usual: float) -> None:
        waited, expected = format_duration(seconds), format_duration(usual)
        self.send("stalled", f"stalled: no epoch has ended for {waited}; usually one takes {expected}")

    def _on_recovery(self, seconds: float) -> None:
        self.send("recovered", f"goes on: an epoch has ended after {format_duration(seconds)}")


@contextmanager
def send_events(run: TrackedRun, notifier: Notifier) -> Iterator[RunEvents]:
    """Yield the events of a training run, and send it if the block raises."""
    events = RunEvents(notifier, run, Role.RUN)
    try:
        yield events
    except BaseException as error:
        events.send_failure(error)
        raise
