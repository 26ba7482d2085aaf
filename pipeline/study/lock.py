"""A lock in a PostgreSQL database: one process at a time has it, and it is free again when its holder is gone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

from sqlalchemy import Connection, Engine, text

from pipeline.study.storage import AWAY, patiently


@dataclass
class Held:
    """Whether a lock was held to its end; known after it."""

    lost: bool = False


class Lock:
    """An advisory lock (PostgreSQL 15, 13.3.5), of which a connection of its own is the holder."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")  # else it would sit in a transaction
        self._key = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)

    @contextmanager
    def held(self) -> Iterator[Held]:
        """Within it no other process holds the lock, unless the server went away: then `lost` is true at the end."""
        held = Held()
        line = patiently(self._take, self._engine.url.render_as_string(hide_password=False))
        try:
            yield held
        finally:
            held.lost = not self._give_back(line)

    def _take(self) -> Connection:
        line = self._engine.connect()
        try:
            line.execute(text("SELECT pg_advisory_lock(:key)"), {"key": self._key})
        except BaseException:
            line.invalidate()  # not back to the pool, where it might hold the lock
            line.close()
            raise
        return line

    def _give_back(self, line: Connection) -> bool:
        try:
            return bool(line.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": self._key}).scalar())
        except AWAY:
            return False
        finally:
            line.close()
