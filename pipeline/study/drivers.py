"""The drivers that hold one study together: each says that it lives, and each can tell which of them are gone."""

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import UsageError
from pipeline.lifetime.process import fate, this_process, told

PREFIX = "driver "  # of the study's notes, one a driver
BEAT_SECONDS = 15.0
SILENCE_SECONDS = 120.0  # after so long without a beat the driver of another host counts as gone


class Drivers:
    """This driver among the others; it is one of them from construction until it leaves.

    A driver of this host is gone when its process is. One of another host is gone when its beat has stood still for
    SILENCE_SECONDS of this driver's own looking: clocks need not agree, and a database that was away ages nobody.

    Args:
        read: all notes of the study.
        write: keep a note in the study.
    """

    def __init__(self, read: Callable[[], Mapping[str, Any]], write: Callable[[str, object], None]) -> None:
        self.id = secrets.token_hex(4)
        self._read, self._write = read, write
        self._seen: dict[str, tuple[float, float, float]] = {}  # by id: last beat, seconds that it stood still, looked
        self._living = frozenset([self.id])
        self._renew()
        self.look()

    def living(self) -> frozenset[str]:
        """Ids of the drivers that lived at the last look, this one among them."""
        return self._living

    def look(self) -> list[str]:
        """Look who lives; returns the ids of those that are gone and have not left."""
        now = time.monotonic()
        gone = []
        others = {key.removeprefix(PREFIX): note for key, note in self._read().items() if key.startswith(PREFIX)}
        others = {one: note for one, note in others.items() if note and one != self.id}
        for one, note in others.items():
            beat, still, looked = self._seen.get(one, (None, 0.0, now))
            still = still + min(now - looked, 2 * BEAT_SECONDS) if beat == note["beat"] else 0.0
            self._seen[one] = (note["beat"], still, now)
            if _gone(note, still):
                gone.append(one)
        self._living = frozenset([self.id, *others]) - set(gone)
        return gone

    def beat(self) -> bool:
        """Say that this driver lives, if it is time to; returns whether it was.

        Raises:
            UsageError: the others took it for gone: its machine slept, say.
        """
        if time.monotonic() - self._beaten <= BEAT_SECONDS:
            return False
        if not self._read().get(PREFIX + self.id):
            raise UsageError(
                "a driver must say at least every two minutes that it lives: the others took this one for gone, and "
                "its trials; start it again"
            )
        self._renew()
        return True

    def bury(self, one: str) -> None:
        """Forget a driver that is gone, after its trials were taken over."""
        self._write(PREFIX + one, None)

    def leave(self) -> None:
        """Be no driver of the study any more; this one's trials have ended."""
        self.bury(self.id)

    def _renew(self) -> None:
        self._beaten = time.monotonic()
        self._write(PREFIX + self.id, this_process().tags() | {"beat": time.time()})


def others_live(notes: Mapping[str, Any]) -> bool:
    """Whether a driver of those that hold a study together may still be there, as far as its notes tell at once."""
    found = [note for key, note in notes.items() if key.startswith(PREFIX) and note]
    return any(not _gone(note, still=time.time() - note["beat"]) for note in found)


def _gone(note: Mapping[str, Any], still: float) -> bool:
    process = told(note)
    where = fate(process, heard=note["beat"]) if process else "elsewhere"
    return where == "gone" or (where == "elsewhere" and still >= SILENCE_SECONDS)
