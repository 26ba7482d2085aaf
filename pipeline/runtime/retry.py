"""One policy for asking again: while there is no answer, with growing pauses, and not for ever."""

import time
from collections.abc import Callable, Sequence
from itertools import chain, repeat
from typing import TypeVar

Answer = TypeVar("Answer")


def retry(
    ask: Callable[[], Answer],
    *,
    is_transient: Callable[[Exception], bool],
    seconds: float,
    pauses: Sequence[float],
) -> Answer:
    """Return what `ask` returns, asking again after each transient error.

    Args:
        ask: the call.
        is_transient: whether an error may pass; any other is raised at once.
        seconds: how long to go on asking.
        pauses: seconds to wait after each error; the last one repeats.

    Raises:
        Exception: what `ask` raised last.
    """
    end = time.monotonic() + seconds
    waits = chain(pauses, repeat(pauses[-1]))
    while True:
        try:
            return ask()
        except Exception as error:
            pause = next(waits)
            if not is_transient(error) or time.monotonic() + pause > end:
                raise
        time.sleep(pause)
