"""Tells the tracking server what a run says, in order, from a thread of its own; keeps what it cannot tell."""

import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from mlflow import MlflowClient

from pipeline.tracking.outbox import delivery, records
from pipeline.tracking.outbox.records import FileWriter, Kind, Record
from pipeline.tracking.outbox.spool import Spool

PAUSES = (0.5, 1.0, 2.0, 5.0)  # seconds between tries; the last one from then on
PATIENCE_SECONDS = 20.0  # at the end of a run with a server that does not answer: a restart takes less

log = logging.getLogger(__name__)


class Outbox:
    """The way of one run's records to MLflow. What is put into it lies on this machine's disk when `put` returns."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._spool = Spool(run_id, to=delivery.address())
        self._life = ExitStack()
        self._client = MlflowClient()
        self._changed = threading.Condition()
        self._tries = 0  # since the server's last answer
        self._behind = False  # whether something is still to be told that it did not take
        self._why = ""  # it did not
        self._refused: Exception | None = None
        self._over = False
        self._mine = self._life.enter_context(self._spool.held())
        self._records: list[Record] = self._spool.waiting() if self._mine else []
        threading.Thread(target=self._work, name="outbox", daemon=True).start()

    def put(
        self,
        kind: Kind,
        body: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
        fill: FileWriter | None = None,
    ) -> None:
        """Have something told.

        Args:
            run_id: of which run, if not the outbox's own.
            fill: puts the record's files into a folder.

        Raises:
            OSError: there is no place for the files.
        """
        with self._changed:
            self._records.append(self._spool.put(kind, run_id or self._run_id, body or {}, fill))
            self._changed.notify_all()

    def flush(self, *, away_seconds: float = PATIENCE_SECONDS, at_most: float = math.inf) -> int:
        """Wait until all is told; returns how many records are left.

        Args:
            away_seconds: how long to wait for a server that does not answer.
            at_most: how long to wait in any case.
        """
        began = time.monotonic()
        with self._changed:
            while self._records and not self._over:
                waited = time.monotonic() - began
                left = min(at_most, away_seconds if self._tries else math.inf) - waited
                if left <= 0:
                    break
                self._changed.wait(min(left, 1.0))
            return len(self._records)

    def check(self) -> None:
        """Raise what MLflow raised as it refused something, once; that is not tried again."""
        with self._changed:
            refused, self._refused = self._refused, None
        if refused:
            raise refused

    def answers(self) -> bool:
        """Whether the server has taken the last thing that it was told."""
        return not self._tries

    def left(self) -> str | None:
        """A line on what is not told yet, or None."""
        with self._changed:
            return delivery.pending_line(self._run_id, len(self._records), self._why) if self._records else None

    def close(self) -> None:
        """End; what is not told stays on the disk for `deliver`."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._life.close()

    def _work(self) -> None:
        while some := self._next():
            try:
                self._send(some)
            except Exception as error:  # noqa: BLE001 - each kind of store raises its own
                with self._changed:
                    self._failed(some, error)
            else:
                with self._changed:
                    self._sent(some)

    def _next(self) -> list[Record]:
        """What to send next, when it is time; nothing: it is over."""
        with self._changed:
            if self._tries:
                self._changed.wait_for(lambda: self._over, PAUSES[min(self._tries, len(PAUSES)) - 1])
            self._changed.wait_for(lambda: self._over or self._records)
            return [] if self._over else records.coalesce(self._records)

    def _send(self, some: list[Record]) -> None:
        if some[0].kind != "others":
            records.send(self._client, some)
            return
        spool = Spool(some[0].run_id)
        with spool.held() as mine:
            done = delivery.drain(self._client, spool, spool.waiting()) if mine else delivery.DeliveryResult()
        if done.away:
            raise ConnectionError(done.why)

    def _sent(self, some: list[Record]) -> None:
        for record in some:
            self._spool.drop(record)
        del self._records[: len(some)]
        self._tries = 0
        if self._behind and not self._records:
            self._behind = False
            log.info("the tracking server answers again, and has been told what was kept")
        self._changed.notify_all()

    def _failed(self, some: list[Record], error: Exception) -> None:
        self._why = delivery.reason(error)
        if records.is_permanent(error):
            self._refused = self._refused or error
            self._sent(some)  # so that what comes after it, the run's end above all, is told
            return
        for record in some:
            record.tried = True
        if not self._behind:
            log.warning(
                "the tracking server does not answer; training goes on, and what it does not take is kept on "
                "this machine (%s)",
                self._why,
            )
        self._tries, self._behind = self._tries + 1, True
        self._changed.notify_all()


@contextmanager
def outbox(run_id: str) -> Iterator[Outbox]:
    """An outbox that is closed in the end."""
    opened = Outbox(run_id)
    try:
        yield opened
    finally:
        opened.close()
