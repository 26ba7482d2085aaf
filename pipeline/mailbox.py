"""What trials on a cluster tell their driver, and what it asks of them."""

import asyncio

from pipeline.node import KILL, Placed
from pipeline.workers.jobs import Report


class Mailbox:
    """An actor of Ray's; each trial has one call of `asked` pending for as long as it runs."""

    def __init__(self) -> None:
        self._told: list[Report | Placed] = []
        self._stirred = asyncio.Event()
        self._asked: dict[int, asyncio.Queue[str]] = {}

    async def tell(self, what: Report | Placed) -> None:
        self._told.append(what)
        self._stirred.set()

    async def stirred(self) -> None:
        """Wait until there is something to take."""
        await self._stirred.wait()

    async def take(self) -> list[Report | Placed]:
        taken, self._told = self._told, []
        self._stirred.clear()
        return taken

    async def ask(self, number: int, what: str) -> None:
        await self._queue(number).put(what)

    async def asked(self, number: int) -> str:
        """Wait until something is asked of a trial."""
        return await self._queue(number).get()

    async def over(self, number: int) -> None:
        """End what waits for a trial that has ended: such a call, left pending, would keep its place for good."""
        if queue := self._asked.pop(number, None):
            queue.put_nowait(KILL)

    def _queue(self, number: int) -> "asyncio.Queue[str]":
        return self._asked.setdefault(number, asyncio.Queue())
