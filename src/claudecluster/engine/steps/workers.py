"""Who may work now: a run's workers, given out critical path first, and agents that are just being started.

Kept in memory: what waited in a process that died waits again in the next one.
"""

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

QUIET = 0.1  # seconds without a start after which a wave of them is over
LONGEST = 1.5  # seconds for which starts may hold up judging


class Workers:
    """So many may work at once; the smallest priority number goes first, then who came first."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def one(self, priority: int) -> AsyncIterator[None]:
        """Occupy a worker while the context lasts, as soon as one is free."""
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._order), turn))
        self._give()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._free += 1
            turn.cancel()
            self._give()

    @property
    def backlog(self) -> bool:
        """Whether somebody waits for a worker."""
        return bool(self._waiting)

    def _give(self) -> None:
        while self._free and self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                self._free -= 1


class Starts:
    """Agents that are just being started. They go before judging: a worker that waits is time lost, a result that waits is not."""

    def __init__(self) -> None:
        self._count = 0
        self._last = -QUIET
        self._calm = asyncio.Event()
        self._calm.set()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Count one more while the context lasts."""
        self._count += 1
        self._calm.clear()
        try:
            yield
        finally:
            self._count -= 1
            self._last = asyncio.get_running_loop().time()
            if not self._count:
                self._calm.set()

    async def none(self, workers: "Workers") -> None:
        """Wait until no agent is being started; where many tasks wait for workers, until none has been for a moment. `LONGEST` at most."""
        clock = asyncio.get_running_loop().time
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONGEST):
                await self._calm.wait()
                while workers.backlog and (rest := self._last + QUIET - clock()) > 0:
                    await asyncio.sleep(rest)
                    await self._calm.wait()
