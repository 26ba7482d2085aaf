"""Asks the tracking server, and asks again while it does not answer."""

import time
from collections.abc import Callable
from itertools import chain, repeat
from typing import TypeVar

from mlflow.exceptions import MlflowException

from pipeline.tracking.outbox.outbox import PATIENCE_SECONDS, PAUSES
from pipeline.tracking.outbox.records import is_permanent

Answer = TypeVar("Answer")


def retry(ask: Callable[[], Answer], *, seconds: float = PATIENCE_SECONDS) -> Answer:
    """What `ask` returns; asked again where MLflow did not answer, for so many seconds.

    Raises:
        MlflowException: it refused, or still does not answer; or what else `ask` raises.
    """
    end = time.monotonic() + seconds
    pauses = chain(PAUSES, repeat(PAUSES[-1]))
    while True:
        try:
            return ask()
        except MlflowException as error:
            pause = next(pauses)
            if is_permanent(error) or time.monotonic() + pause > end:
                raise
        time.sleep(pause)
