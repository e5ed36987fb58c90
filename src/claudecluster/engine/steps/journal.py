"""Agents' output on its way to the store: gathered in memory, written in chunks, one JSON line per thing heard.

A line is `{"at": seconds since the epoch, "kind": str, "text": str}`. Kinds are those of `ports.agent.Heard`, and `gate`.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from claudecluster.kit.clock import Clock
from claudecluster.ports.agent import Hear, Heard
from claudecluster.ports.store import Store

FLUSH_SECONDS = 0.25
FLUSH_BYTES = 64 * 1024
LONGEST = 16 * 1024  # characters of one text; what is cut says so


class Journal:
    """One attempt's log. Whatever is still in memory is written when the context closes."""

    def __init__(self, store: Store, clock: Clock, run: str, task: str, attempt: int) -> None:
        self._store = store
        self._clock = clock
        self._where = (run, task, attempt)
        self._lines: list[bytes] = []
        self._size = 0
        self._full = asyncio.Event()

    def hear(self, heard: Heard) -> None:
        """Take a note of something heard. Never blocks."""
        text = heard.text if len(heard.text) <= LONGEST else heard.text[:LONGEST] + f" … ({len(heard.text) - LONGEST} characters cut)"
        line = json.dumps({"at": round(self._clock.now(), 3), "kind": heard.kind, "text": text}, ensure_ascii=False)
        self._lines.append(line.encode("utf-8", "replace") + b"\n")
        self._size += len(line)
        if self._size >= FLUSH_BYTES:
            self._full.set()

    async def flush(self) -> None:
        """Write what was heard since the last time."""
        self._full.clear()
        if not self._lines:
            return
        chunk, self._lines, self._size = b"".join(self._lines), [], 0
        await self._store.write_log(*self._where, chunk)

    async def keep_flushing(self) -> None:
        """Write every quarter of a second, or sooner when much was heard."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), FLUSH_SECONDS)
            await self.flush()


@asynccontextmanager
async def journal(store: Store, clock: Clock, run: str, task: str, attempt: int) -> AsyncIterator[Hear]:
    """Give an attempt someone who listens."""
    book = Journal(store, clock, run, task, attempt)
    flusher = asyncio.create_task(book.keep_flushing())
    try:
        yield book.hear
    finally:
        flusher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await flusher
        await book.flush()
