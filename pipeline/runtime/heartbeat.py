"""A heartbeat: a call at regular intervals from a thread of its own."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

BEAT_SECONDS = 60.0
PATIENCE_SECONDS = 2.0  # with a call that has begun: its store may be unavailable


@contextmanager
def heartbeat(beat: Callable[[], None], *, seconds: float = BEAT_SECONDS) -> Iterator[Callable[[], None]]:
    """Context manager: call `beat` at regular intervals, whatever it raises.

    Yields:
        A function that ends the heartbeat early. After the end no call begins, and one that has begun is waited for,
        but not longer than PATIENCE_SECONDS.
    """
    over, beating = threading.Event(), threading.Lock()

    def work() -> None:
        while not over.wait(seconds):
            # a store that is unavailable now may answer the next call
            with beating, suppress(Exception):
                if not over.is_set():
                    beat()

    def end() -> None:
        over.set()
        if beating.acquire(timeout=PATIENCE_SECONDS):
            beating.release()

    threading.Thread(target=work, name="heartbeat", daemon=True).start()
    try:
        yield end
    finally:
        end()
