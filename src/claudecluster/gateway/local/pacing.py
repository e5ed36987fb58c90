"""Keep a client patient while a local model reads its prompt: a ping every few seconds, and a moment's wait for an early refusal.

Claude Code gives a silent stream 300 seconds; a long prompt on a CPU takes longer. Used by `answering`; knows no wire.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from claudecluster.gateway.local.replies.writing import PING
from claudecluster.kit.clock import Clock


class Paced:
    """Iterate it for the source's items with pings in its silences. `close` gives the source up at once."""

    def __init__(self, source: AsyncGenerator[bytes, None], clock: Clock, every: float) -> None:
        self._source = source
        self._clock = clock
        self._every = every
        self._step: asyncio.Task[bytes | None] | None = None
        self._timer: asyncio.Task[None] | None = None

    async def begin(self, patience: float) -> bool:
        """Wait that many seconds for the first item; return whether it is there. Raises what the source raises by then."""
        step, timer = self._stepping(), self._timing(patience)
        await asyncio.wait({step, timer}, return_when=asyncio.FIRST_COMPLETED)
        if step.done():
            step.result()
        return step.done()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            if self._step is not None and not self._step.done():
                yield PING  # it has been silent since `begin`
            timer = self._timing(self._every)
            while True:
                step = self._stepping()
                await asyncio.wait({step, timer}, return_when=asyncio.FIRST_COMPLETED)
                if step.done():
                    self._step = None
                    item = step.result()
                    if item is None:
                        return
                    yield item
                else:
                    yield PING
                if timer.done():
                    timer = self._timing(self._every)
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop the source where it stands. Fine at any time, also twice."""
        step, self._step = self._step, None
        if self._timer is not None:
            self._timer.cancel()
        if step is not None:
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)
        await self._source.aclose()

    def _timing(self, seconds: float) -> asyncio.Task[None]:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.ensure_future(self._clock.sleep(seconds))
        return self._timer

    def _stepping(self) -> asyncio.Task[bytes | None]:
        if self._step is None:
            self._step = asyncio.ensure_future(self._next())
        return self._step

    async def _next(self) -> bytes | None:
        return await anext(self._source, None)
