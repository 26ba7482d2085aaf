"""One retry policy: repeat a call after transient errors, with growing pauses, for a limited time."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

Result = TypeVar("Result")


def retry(
    call: Callable[[], Result],
    *,
    is_transient: Callable[[Exception], bool],
    seconds: float,
    pauses: Sequence[float],
    on_retry: Callable[[Exception], None] = lambda error: None,
) -> Result:
    """Return what `call` returns, repeating it after each transient error.

    Args:
        call: may be made several times.
        is_transient: whether a repeated call may succeed after this error; any other error is raised at once.
        seconds: how long to repeat the call.
        pauses: see `pause_seconds`.
        on_retry: called with each transient error that a pause and another call follow.

    Raises:
        Exception: the last error of `call`, where it was not transient or the time was up.
    """
    deadline = time.monotonic() + seconds
    failures = 0
    while True:
        try:
            return call()
        except Exception as error:
            failures += 1
            pause = pause_seconds(pauses, failures)
            if not is_transient(error) or time.monotonic() + pause > deadline:
                raise
            on_retry(error)
        time.sleep(pause)


def pause_seconds(pauses: Sequence[float], failures: int) -> float:
    """Return how long to wait after so many failures in a row: `pauses` in turn, and then the last one each time."""
    return pauses[min(failures, len(pauses)) - 1]
