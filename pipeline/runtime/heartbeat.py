"""A sign of life at even intervals, from a thread of its own."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

BEAT_SECONDS = 60.0
PATIENCE_SECONDS = 2.0  # with a beat that is under way: its store may be away


@contextmanager
def heartbeat(beat: Callable[[], None], *, seconds: float = BEAT_SECONDS) -> Iterator[Callable[[], None]]:
    """Within it `beat` is called at even intervals, whatever it raises; yields what ends that earlier.

    After the end no beat begins, and one that is under way is waited for, but not for long.
    """
    over, beating = threading.Event(), threading.Lock()

    def work() -> None:
        while not over.wait(seconds):
            with beating, suppress(Exception):  # a store that is away comes back
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
