"""The queue of a receiver's events on this machine's disk: a private file each, kept until they are delivered."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.notifications.receivers import FOLDER, Refused
from pipeline.runtime.files import cache_folder, make_private, try_lock, write_atomic
from pipeline.runtime.text import printable

LOCK = "lock"
ABOUT = "receiver.txt"  # its name, for those who look at the folder
PENDING, REFUSED = ".json", ".refused"
# Older events, and the oldest of more, are no news
MAX_AGE_SECONDS = 7 * 24 * 3600.0
MAX_EVENTS = 200

Event = Mapping[str, Any]


class EventQueue:
    """The events that wait for one receiver, of all processes of this user on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, event: Event, *, receiver: str) -> None:
        """Keep an event; once this returns, a kill does not lose it.

        Raises:
            OSError: The disk is full, for example.
        """
        make_private(self.folder)
        if not (self.folder / ABOUT).exists():
            write_atomic(self.folder / ABOUT, receiver.encode())
        # so that names sort by time, and no two processes take the same
        name = f"{time.time_ns():020d}-{event['id'][:8]}{PENDING}"
        write_atomic(self.folder / name, json.dumps(event).encode())
        self._forget_old()

    def pending(self) -> list[Path]:
        """Return the files of the events that wait, the oldest first."""
        return sorted(self.folder.glob(f"*{PENDING}"))

    def refused(self) -> list[Path]:
        """Return the files of the events that the receiver has refused."""
        return sorted(self.folder.glob(f"*{REFUSED}"))

    def drain(self, deliver: Callable[[Event], None]) -> str:
        """Deliver the events, the oldest first.

        Returns:
            Why the last one that was refused was; empty if none was. It is set aside.

        Raises:
            BlockingIOError: Another process delivers them at this moment.
            Exception: What `deliver` raises, but Refused; the event stays.
        """
        reason = ""
        if not self.pending():
            return reason
        with self._lock():
            self._forget_old()
            for path in self.pending():
                event = self._read(path)
                if event is None:
                    continue
                try:
                    deliver(event)
                except Refused as refusal:
                    reason = str(refusal)
                    path.replace(path.with_suffix(REFUSED))
                else:
                    path.unlink(missing_ok=True)
        return reason

    def take_back(self) -> int:
        """Make the events that were refused wait again; return how many there were."""
        paths = self.refused()
        for path in paths:
            path.replace(path.with_suffix(PENDING))
        return len(paths)

    def receiver(self) -> str:
        """Return the name of the receiver."""
        try:
            return printable((self.folder / ABOUT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return "an unknown receiver"

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                is_mine = stack.enter_context(try_lock(self.folder / LOCK))
            except OSError:
                # a file system without locks, or a full disk
                is_mine = True
            if not is_mine:
                raise BlockingIOError
            yield

    @staticmethod
    def _read(path: Path) -> Event | None:
        """Return the event in a file; remove a file that holds none, and return None."""
        try:
            event = json.loads(path.read_bytes())
            if isinstance(event, dict) and "text" in event:
                return event
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            pass
        path.unlink(missing_ok=True)
        return None

    def _forget_old(self) -> None:
        oldest = time.time() - MAX_AGE_SECONDS
        for paths in (self.pending(), self.refused(), sorted(self.folder.glob("*.part"))):
            for position, path in enumerate(paths):
                # another process may have removed it
                with suppress(OSError):
                    if position < len(paths) - MAX_EVENTS or os.stat(path).st_mtime < oldest:
                        path.unlink()


def queues() -> list[EventQueue]:
    """Return the queues on this machine in which events wait or have been refused."""
    root = cache_folder(FOLDER)
    found = [EventQueue(path) for path in sorted(root.iterdir())] if root.is_dir() else []
    return [queue for queue in found if queue.pending() or queue.refused()]
