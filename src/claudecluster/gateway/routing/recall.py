"""What was metered before this gateway began, and what others that share its store meter beside it: so that budgets are the store's.

The core begins it once; the exchange refreshes it before it looks at a budget. It writes nothing.
"""

import asyncio
from contextlib import suppress
from typing import Protocol

from claudecluster.kit.clock import Clock
from claudecluster.limits.allowance import Spending
from claudecluster.limits.summary import Ledger
from claudecluster.model.errors import ClusterError
from claudecluster.model.usage import Metered

OVERLAP = 20.0  # seconds: how late a request may be written down after it was metered, and how far clocks of two machines may differ
FRESH = 1.0  # seconds for which what was read is good enough


class Past(Protocol):
    """Where metered requests are kept. Moments are epoch seconds."""

    async def spent(self, since: float, until: float) -> list[Metered]:
        """Return what was metered after `since` and up to `until`, summed by whom and by what. Raises Unavailable."""
        ...

    async def metered(self, since: float) -> list[Metered]:
        """Return the single requests metered after a moment. Raises Unavailable."""
        ...


class Recall:
    """Reads into a ledger what it has not seen itself; keys keep a request from counting twice."""

    def __init__(self, past: Past, ledger: Ledger, spending: Spending, clock: Clock) -> None:
        self._past = past
        self._ledger = ledger
        self._spending = spending
        self._clock = clock
        self._since = 0.0
        self._good_until = float("-inf")
        self._reading = asyncio.Lock()

    async def begin(self) -> None:
        """Read everything there is. Raises Unavailable."""
        now = self._clock.now()
        until, began = now - OVERLAP, max(0.0, self._spending.began(now))
        everything = await self._past.spent(0.0, until)
        for record in everything:
            self._ledger.add(record)
        for record in everything if began <= 0.0 else await self._past.spent(began, until):
            self._spending.add(record)
        self._since = until
        await self._read()

    async def refresh(self) -> None:
        """Read what is new, if the last look is not of this very moment. A store that cannot be read leaves what is known."""
        if self._clock.monotonic() < self._good_until:
            return
        async with self._reading:
            if self._clock.monotonic() >= self._good_until:
                with suppress(ClusterError):
                    await self._read()

    async def _read(self) -> None:
        now = self._clock.now()
        for record in await self._past.metered(self._since):
            if self._ledger.add(record):
                self._spending.add(record)
        self._since = now - OVERLAP
        self._good_until = self._clock.monotonic() + FRESH
