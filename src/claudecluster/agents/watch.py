"""When to stop an agent that does not stop by itself: too long silent, or too long at work."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from claudecluster.kit.clock import Clock
from claudecluster.model.evidence import Outcome


class Watch:
    """Knows when something was last heard. `idle` seconds of silence, or `limit` seconds in all, raise the alarm."""

    def __init__(self, clock: Clock, *, idle: float, limit: float) -> None:
        self.idle = idle
        self._clock = clock
        self._last = clock.monotonic()
        self._deadline = self._last + limit

    def heard(self) -> None:
        """Note a sign of life."""
        self._last = self._clock.monotonic()

    async def alarm(self) -> Outcome:
        """Return STALLED or TIMED_OUT once it is so."""
        while True:
            now = self._clock.monotonic()
            if now >= self._deadline:
                return Outcome.TIMED_OUT
            if now >= self._last + self.idle:
                return Outcome.STALLED
            await self._clock.sleep(min(self._deadline, self._last + self.idle, now + 1.0) - now)  # `idle` may shrink meanwhile


async def whichever_first(work: Coroutine[Any, Any, None], alarm: Coroutine[Any, Any, Outcome]) -> Outcome | None:
    """Wait for the work, or for the alarm: then the work is cancelled and cleaned up, and the alarm's outcome returned."""
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(alarm)
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return None
        return waiting.result()
    finally:
        working.cancel()
        waiting.cancel()
        await asyncio.wait({working, waiting})
