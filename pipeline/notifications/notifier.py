"""The notifier: sends events to their receivers from threads of its own, and keeps what it cannot send."""

import logging
import threading
import time
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from pipeline.notifications.queue import Event, EventQueue
from pipeline.notifications.receivers import Away, Receiver, Refused, take_receivers
from pipeline.runtime.errors import UsageError
from pipeline.runtime.retry import pause_seconds

PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)  # seconds between attempts; the last one from then on
BUSY_SECONDS = 0.5  # until another process, which sends the same events, is looked at again
END_SECONDS = 3.0  # at the end of a command
STOP_SECONDS = 1.0  # of one that a signal ends

log = logging.getLogger(__name__)


class Notifier:
    """Sends events to some receivers, or to none; as a context manager it stops at the end.

    `send` writes the event to this machine's disk and returns. What has not been delivered at the end stays there for
    the next command that has the same receiver.

    Args:
        receivers: Who gets the events.
        pauses: Seconds between attempts to deliver one.
    """

    def __init__(self, receivers: Sequence[Receiver] = (), *, pauses: Sequence[float] = PAUSES) -> None:
        self._senders = [_Sender(receiver, pauses) for receiver in receivers]

    @property
    def has_receivers(self) -> bool:
        """Return whether anybody gets the events."""
        return bool(self._senders)

    def send(self, event: Event) -> None:
        """Send an event to every receiver."""
        for sender in self._senders:
            sender.put(event)

    def flush(self, seconds: float = END_SECONDS) -> bool:
        """Try to deliver everything at once, for at most so long; return whether nothing is left."""
        for sender in self._senders:
            sender.hurry()
        deadline = time.monotonic() + seconds
        return all(sender.wait(max(0.0, deadline - time.monotonic())) for sender in self._senders)

    def close(self, seconds: float = END_SECONDS) -> None:
        """Deliver what can be delivered at once, for at most so long, and stop."""
        self.flush(seconds)
        for sender in self._senders:
            sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # one who has pressed Ctrl-C waits
        self.close(END_SECONDS if kind is None or issubclass(kind, Exception) else STOP_SECONDS)


@contextmanager
def deliver_pending(environ: MutableMapping[str, str]) -> Iterator[None]:
    """Deliver, while the block runs, what earlier commands could not, to the receivers that variables name.

    The address is removed from the environment, so that no process started later sees it.
    """
    receivers: list[Receiver] = []
    # whether a variable is wrong is said by those commands that need it
    with suppress(UsageError):
        receivers = [one for one in take_receivers(environ, {}) if EventQueue(one.folder).pending()]
    with Notifier(receivers):
        yield


class _Sender:
    """Sends the events of one receiver from a thread."""

    def __init__(self, receiver: Receiver, pauses: Sequence[float]) -> None:
        self._receiver, self._pauses = receiver, pauses
        self._queue = EventQueue(receiver.folder)
        self._unwritten: list[Event] = []  # which the disk had no room for
        self._changed = threading.Condition()
        self._has_work = True  # events of earlier processes
        self._is_hurried = self._is_closed = False
        self._failures = 0  # in a row
        self._attempts = 0
        self._has_said_away = self._has_said_refused = False
        threading.Thread(target=self._work, name="notifier", daemon=True).start()

    def put(self, event: Event) -> None:
        with self._changed:
            try:
                self._queue.put(event, receiver=self._receiver.name)
            except OSError:
                self._unwritten.append(event)
            self._has_work = True
            self._changed.notify_all()

    def hurry(self) -> None:
        """Cut the present pause short."""
        with self._changed:
            self._is_hurried = True
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait until nothing is left, or an attempt has failed from now on; return whether nothing is left."""
        with self._changed:
            attempts = self._attempts
            self._changed.wait_for(
                lambda: not self._has_work or (self._failures and self._attempts > attempts), timeout=seconds
            )
            return not self._has_work

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while self._next():
            is_busy = False
            try:
                refusal = self._drain()
            except BlockingIOError:
                is_busy = True
            except Exception as error:  # noqa: BLE001 - whatever it is, the next attempt may succeed
                self._on_failure(str(error) if isinstance(error, Away) else type(error).__name__)
            else:
                self._on_delivered(refusal)
            if is_busy:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed, BUSY_SECONDS)

    def _next(self) -> bool:
        """Wait for work, and for the pause after a failure; return False at the end."""
        with self._changed:
            if self._failures:
                self._changed.wait_for(
                    lambda: self._is_closed or self._is_hurried, pause_seconds(self._pauses, self._failures)
                )
            self._changed.wait_for(lambda: self._is_closed or self._has_work)
            self._is_hurried = False
            return not self._is_closed

    def _drain(self) -> str:
        """Deliver what there is; return why the last one that was refused was, or an empty text."""
        refusal = self._queue.drain(self._receiver.deliver)
        while self._unwritten:
            try:
                self._receiver.deliver(self._unwritten[0])
            except Refused as error:
                refusal = str(error)
            del self._unwritten[0]
        return refusal

    def _on_delivered(self, refusal: str) -> None:
        if refusal and not self._has_said_refused:
            self._has_said_refused = True
            log.warning(
                "%s refuses notifications (%s); they are kept in %s and not sent again unless the doctor is asked to",
                *(self._receiver.name, refusal, self._receiver.folder),
            )
        elif self._failures and not refusal:
            log.info("%s answers again and has all notifications", self._receiver.name)
            self._has_said_away = False
        with self._changed:
            self._attempts += 1
            self._failures = 0
            self._has_work = bool(self._queue.pending() or self._unwritten)
            self._changed.notify_all()

    def _on_failure(self, reason: str) -> None:
        if not self._has_said_away:
            self._has_said_away = True
            log.warning(
                "%s does not take notifications now (%s); they are kept on this machine and sent when it does, by "
                "later commands too",
                *(self._receiver.name, reason),
            )
        with self._changed:
            self._attempts += 1
            self._failures += 1
            self._changed.notify_all()
