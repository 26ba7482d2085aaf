"""Put the images of several requests, which are answered by as many threads, into one batch for the network.

It has no thread of its own: the thread of a request that finds the network free runs it, for those who wait as well.
So nobody waits for a thread that has died, and a request that is alone is answered at once. Served models contain a
copy of this file.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np


class MicroBatcher:
    """Answers images as `predict` does, in batches that several requests share.

    Args:
        predict: Images (n, h, w, c) -> one row for each image, (n, classes). An image's row must not depend on the
            others.
        max_images: Of a batch of several requests; one request may bring as many.
        window_seconds: How long a batch waits for requests that have been announced; 0: each request has its own.
        runners: How many batches are computed at a time.
        on_batch: Is told the number of images of each batch.
    """

    def __init__(
        self,
        predict: Callable[[np.ndarray], np.ndarray],
        *,
        max_images: int,
        window_seconds: float,
        runners: int = 1,
        on_batch: Callable[[int], None] = lambda images: None,
    ) -> None:
        self._call = predict
        self._max_images = max_images
        self._window = window_seconds
        self._free = runners
        self._on_batch = on_batch
        # Guards all that follows; is notified when a request arrives or is no longer announced.
        self._changed = threading.Condition()
        self._announced = 0
        self._collecting = False
        self._waiting: deque[_Request] = deque()

    @contextmanager
    def announce(self) -> Iterator[None]:
        """Context manager: A request is being decoded, and a batch may wait for it."""
        with self._changed:
            self._announced += 1
        try:
            yield
        finally:
            with self._changed:
                self._announced -= 1
                self._changed.notify_all()

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return one row for each of the images (n, h, w, c), n up to max_images.

        Raises:
            Exception: Whatever `predict` raises for these images alone.
        """
        if not self._window:
            self._on_batch(len(images))
            return self._call(images)
        request = _Request(images)
        with self._changed:
            if self._collecting or not self._free:
                self._waiting.append(request)
                self._changed.notify_all()
            else:
                self._lead(request)
        request.woken.wait()
        if request.leads:
            self._run(request)
        return request.result()

    def _run(self, leader: "_Request") -> None:
        """Run a batch with the request of this thread and others, and give the network to a request that waits."""
        batch = [leader]
        try:
            self._collect(batch)
            self._answer(batch)
        finally:
            for request in batch:
                request.woken.set()
            with self._changed:
                self._free += 1
                self._appoint()

    def _collect(self, batch: list["_Request"]) -> None:
        """Add waiting requests to a batch, until it is full, nobody else is announced or the window has passed."""
        until = time.monotonic() + self._window
        with self._changed:
            try:
                while True:
                    self._take(batch)
                    left = until - time.monotonic()
                    is_full = self._waiting or sum(len(each.images) for each in batch) >= self._max_images
                    if is_full or not self._announced or left <= 0:
                        return
                    self._changed.wait(left)
            finally:
                self._collecting = False
                self._appoint()

    def _take(self, batch: list["_Request"]) -> None:
        """Move the waiting requests that fit to a batch, in their order. Call with the lock."""
        images = sum(len(each.images) for each in batch)
        while self._waiting and images + len(self._waiting[0].images) <= self._max_images:
            images += len(self._waiting[0].images)
            batch.append(self._waiting.popleft())

    def _appoint(self) -> None:
        """Let the next of the waiting requests run the network, if it is free. Call with the lock."""
        # One that collects takes what waits, and calls this for the rest.
        if self._waiting and self._free and not self._collecting:
            # It is taken off the queue here, so nobody else answers it.
            self._lead(self._waiting.popleft())

    def _lead(self, request: "_Request") -> None:
        """Let a request run the network, with others that arrive until then. Call with the lock."""
        self._free -= 1
        self._collecting = True
        request.leads = True
        request.woken.set()

    def _answer(self, batch: list["_Request"]) -> None:
        """Give each request its rows, or the error that it has alone."""
        images = np.concatenate([each.images for each in batch])
        try:
            self._on_batch(len(images))
            rows = self._call(images)
        except Exception as error:  # noqa: BLE001 - passed on to the thread whose request it is
            if len(batch) == 1:
                batch[0].error = error
                return
            for request in batch:
                self._answer([request])
            return
        start = 0
        for request in batch:
            request.rows = rows[start : start + len(request.images)]
            start += len(request.images)


class _Request:
    """The images of a thread that waits for their rows."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.rows: np.ndarray | None = None
        self.error: Exception | None = None
        # Set when the request is answered, or is to run the network itself
        self.woken = threading.Event()
        self.leads = False

    def result(self) -> np.ndarray:
        if self.error is not None:
            raise self.error
        if self.rows is None:
            raise RuntimeError("the thread that ran the batch was interrupted")
        return self.rows
