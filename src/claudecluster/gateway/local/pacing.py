"""Keep a client patient while a local model reads its prompt: a ping every few seconds, and a moment's wait for an early refusal.

Claude Code gives a silent stream 300 seconds; a long prompt on a CPU takes longer. Used by `answering`; knows no wire.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from claudecluster.gateway.local.replies.writing import PING
from claudecluster.kit.clock import Clock

AHEAD = 64  # items read before the client takes them


class Paced:
    """Iterate it, once, for the source's items with pings in its silences. `close` gives the source up at once."""

    def __init__(self, source: AsyncGenerator[bytes, None], clock: Clock, every: float) -> None:
        self._source = source
        self._clock = clock
        self._every = every
        self._items: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(AHEAD)
        self._first: bytes | None = PING
        self._moved = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._pinger: asyncio.Task[None] | None = None

    async def begin(self, patience: float) -> bool:
        """Wait that many seconds for the first item; return whether it is there. Raises what the source raises by then."""
        self._pump = asyncio.ensure_future(self._pumping())
        moved, timer = asyncio.ensure_future(self._moved.wait()), asyncio.ensure_future(self._clock.sleep(patience))
        try:
            await asyncio.wait({moved, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            moved.cancel()
            timer.cancel()
        first = PING if self._items.empty() else self._items.get_nowait()
        if isinstance(first, Exception):
            raise first
        self._first = first
        return first is not PING

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._pinger = asyncio.ensure_future(self._pinging())
        try:
            item: bytes | Exception | None = self._first
            while item is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
                item = await self._items.get()
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop the source where it stands. Fine at any time, also twice."""
        tasks = [task for task in (self._pump, self._pinger) if task is not None]
        self._pump = self._pinger = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._source.aclose()

    async def _pumping(self) -> None:
        end: Exception | None = None
        try:
            async for item in self._source:
                await self._items.put(item)
                self._moved.set()
        except asyncio.CancelledError:
            if not self._items.full():
                self._items.put_nowait(None)  # whoever iterates must not wait for a source that was stopped
            raise
        except Exception as error:  # noqa: BLE001 - handed on to whoever iterates
            end = error
        await self._items.put(end)
        self._moved.set()

    async def _pinging(self) -> None:
        while True:
            self._moved.clear()
            await self._clock.sleep(self._every)
            if not self._moved.is_set() and not self._items.full():  # a full queue means the client is not reading
                self._items.put_nowait(PING)
