"""The outbox: sends what is logged to a run from a thread of its own, in order, and keeps what it cannot send."""

import logging
import math
import threading
import time
from contextlib import ExitStack

from pipeline.runtime.errors import Rejected, TrackingError
from pipeline.runtime.retry import pause_seconds
from pipeline.tracking.client import TrackingClient
from pipeline.tracking.errors import is_unavailable
from pipeline.tracking.outbox import delivery
from pipeline.tracking.outbox.records import MAX_RECORDS, Record, coalesce
from pipeline.tracking.outbox.spool import Spool, SpooledRecord

PAUSES = (0.5, 1.0, 2.0, 5.0)  # seconds between attempts; the last one from then on
PATIENCE_SECONDS = 20.0  # at the end of a run with a server that does not answer: a restart takes less

log = logging.getLogger(__name__)


class Outbox:
    """The records of a run on their way to MLflow: once `put` returns, a record is on this machine's disk."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._spool = Spool(run_id, destination=delivery.tracking_address())
        self._life = ExitStack()
        self._client = TrackingClient()
        self._changed = threading.Condition()
        self._failures = 0  # since the server's last answer
        self._one_by_one = 0  # records to send alone: a call for all of them was refused
        self._is_behind = False  # whether there are records that the server did not accept at once
        self._reason = ""  # why the last attempt failed
        self._rejection: TrackingError | None = None
        self._is_closed = False
        # another process may just be sending what the run has left
        is_mine = self._life.enter_context(self._spool.lock(seconds=PATIENCE_SECONDS))
        self._records: list[SpooledRecord] = self._spool.pending() if is_mine else []
        if self._spool.refusals:
            log.warning("%s", delivery.describe_set_aside(self._spool.set_aside_folder, self._spool.refusals))
        threading.Thread(target=self._work, name="outbox", daemon=True).start()

    def put(self, record: Record) -> None:
        """Keep a record, and send it after those before it.

        Raises:
            OSError: There is no place for its files.
        """
        with self._changed:
            self._records.append(self._spool.put(record))
            self._changed.notify_all()

    def flush(self, *, unavailable_seconds: float = PATIENCE_SECONDS, at_most: float = math.inf) -> int:
        """Wait until all records are sent; return how many are pending.

        Args:
            unavailable_seconds: How long to wait for a server that does not answer.
            at_most: How long to wait in any case.
        """
        began = time.monotonic()
        with self._changed:
            while self._records and not self._is_closed:
                elapsed = time.monotonic() - began
                remaining = min(at_most, unavailable_seconds if self._failures else math.inf) - elapsed
                if remaining <= 0:
                    break
                self._changed.wait(min(remaining, 1.0))
            return len(self._records)

    def raise_rejection(self) -> None:
        """Raise, once, the error with which MLflow refused a record; that record is set aside.

        Raises:
            TrackingError: A record was refused.
        """
        with self._changed:
            rejection, self._rejection = self._rejection, None
        if rejection:
            raise rejection

    def failure(self) -> str:
        """Return why the last attempt to send failed, if none has succeeded since; else an empty text."""
        with self._changed:
            return self._reason if self._failures else ""

    def pending(self) -> str | None:
        """Return a line on the records that are not sent yet, or None."""
        with self._changed:
            if not self._records:
                return None
            return delivery.describe_pending(self._run_id, len(self._records), self._reason)

    def unsent(self) -> str | None:
        """Return a line on the records that are pending, else one on those that were refused, or None."""
        with self._changed:
            if not self._records and self._spool.refusals:
                return delivery.describe_set_aside(self._spool.set_aside_folder, self._spool.refusals)
        return self.pending()

    def close(self) -> None:
        """Stop sending; what is pending stays on the disk for `delivery.send_pending`."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._life.close()

    def _work(self) -> None:
        while True:
            batch = self._next()
            if batch is None:
                return
            record, count = batch
            try:
                record.send(self._client)
            except Exception as error:  # noqa: BLE001 - each kind of store raises its own
                with self._changed:
                    self._on_failure(count, error)
            else:
                with self._changed:
                    self._on_sent(count)

    def _next(self) -> tuple[Record, int] | None:
        """Wait for the pause after a failure and for a record; return it as `coalesce` does, or None at the end."""
        with self._changed:
            if self._failures:
                self._changed.wait_for(lambda: self._is_closed, pause_seconds(PAUSES, self._failures))
            self._changed.wait_for(lambda: self._is_closed or self._records)
            if self._is_closed:
                return None
            records = [spooled.record for spooled in self._records[:MAX_RECORDS]]
            return coalesce(records, at_most=1 if self._one_by_one else MAX_RECORDS)

    def _on_sent(self, count: int) -> None:
        for spooled in self._records[:count]:
            self._spool.remove(spooled)
        self._on_done(count)

    def _on_done(self, count: int) -> None:
        del self._records[:count]
        self._one_by_one = max(0, self._one_by_one - count)
        self._failures = 0
        if self._is_behind and not self._records:
            self._is_behind = False
            log.warning("the tracking server answers again and has all pending records")
        self._changed.notify_all()

    def _on_failure(self, count: int, error: Exception) -> None:
        self._reason = delivery.describe_error(error)
        for spooled in self._records[:count]:
            spooled.record = spooled.record.as_retried()
        if not is_unavailable(error):
            if count > 1:
                # it may have been one of them alone
                self._one_by_one = count
                return
            if self._rejection is None:
                self._rejection = error if isinstance(error, TrackingError) else Rejected(self._reason)
            # so that what comes after it is sent, the run's end above all
            self._spool.set_aside(self._records[0], self._reason)
            self._on_done(1)
            return
        if not self._is_behind:
            log.warning(
                "the tracking server does not answer; training goes on, and what is logged is kept on this machine "
                "until it does (%s)",
                self._reason,
            )
        self._failures, self._is_behind = self._failures + 1, True
        self._changed.notify_all()
