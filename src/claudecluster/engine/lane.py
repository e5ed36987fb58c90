"""A run's merge queue: landings happen one after another, but each is tested early, on what those before it are about to land.

Kept in memory; the branch's compare-and-swap is what keeps landing right. Whoever was tested on a commit that never landed is
tested again. After a crash everybody queues anew.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

AHEAD = max(2, os.cpu_count() or 1)  # gates of so many landings may run at once


class Lane:
    """The queue of one run."""

    def __init__(self, ahead: int = AHEAD) -> None:
        self._slots: list[Slot] = []
        self._gates = asyncio.Semaphore(ahead)

    @contextlib.contextmanager
    def enter(self) -> Iterator["Slot"]:
        """Stand at the end of the queue while the context lasts."""
        slot = Slot(self)
        self._slots.append(slot)
        try:
            yield slot
        finally:
            self._slots.remove(slot)
            slot.plan("")
            slot.left.set()

    def before(self, slot: "Slot") -> list["Slot"]:
        """Return who stands before a slot, the nearest first."""
        return self._slots[: self._slots.index(slot)][::-1]

    @asynccontextmanager
    async def testing(self, slot: "Slot") -> AsyncIterator[None]:
        """Wait until a few others at most are testing; the first in the queue never waits."""
        if not self.before(slot):
            yield
            return
        async with self._gates:
            yield


class Slot:
    """One landing's place in the queue."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._planned: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.left = asyncio.Event()

    def plan(self, commit: str) -> None:
        """Say which commit this landing is about to put onto the branch; empty if none."""
        if not self._planned.done():
            self._planned.set_result(commit)

    def again(self) -> None:
        """Forget the plan: what it was made for has not landed."""
        self._planned = asyncio.get_running_loop().create_future()

    async def onto(self) -> str:
        """Return the commit that will be the branch's head when this landing's turn comes, if all before it go well; empty for today's head."""
        for slot in self._lane.before(self):
            planned = await slot._planned  # noqa: SLF001 - the same class
            if planned and not slot.left.is_set():
                return planned
        return ""

    async def turn(self) -> None:
        """Wait until all before it have landed or left."""
        while before := self._lane.before(self):
            await before[-1].left.wait()

    def testing(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Hold one of the few places where gates run."""
        return self._lane.testing(self)
