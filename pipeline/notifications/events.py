"""Events: what happened to a run or a search, as the JSON that receivers get."""

import math
import socket
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from pipeline.runtime.text import one_line
from pipeline.runtime.urls import mask_password

Kind = Literal["finished", "failed", "diverged", "stopped", "stalled", "recovered", "new_best", "budget"]
TEXT_CHARACTERS = 1000


class Subject(NamedTuple):
    """The run that events are about."""

    role: str  # run or search
    run_id: str
    name: str
    experiment: str
    url: str  # of its page, without a secret


def make_event(
    kind: Kind, subject: Subject, text: str, *, reason: str = "", metrics: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return an event without secrets.

    Args:
        kind: What happened.
        subject: To which run.
        text: The same as a line for people, without the run's name.
        reason: Why, for what went wrong.
        metrics: Results so far; those that are not finite are None in the event, as JSON knows no others.
    """
    return {
        "event": kind,
        "text": _clean(f"{subject.name}: {text}"),
        "id": uuid.uuid4().hex,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "role": subject.role,
        "run_id": subject.run_id,
        "name": _clean(subject.name),
        "experiment": _clean(subject.experiment),
        "url": subject.url,
        "reason": _clean(reason),
        "metrics": {
            name: float(value) if math.isfinite(value) else None for name, value in sorted((metrics or {}).items())
        },
    }


def _clean(text: str) -> str:
    return one_line(mask_password(text), most=TEXT_CHARACTERS)
