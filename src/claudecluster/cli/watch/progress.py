"""A run as it goes, on stderr: a live table on a terminal, plain lines elsewhere. Fed by the store's facts only."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from claudecluster.cli import voice
from claudecluster.cli.loading import load
from claudecluster.cli.text import moment
from claudecluster.cli.watch.phrases import phrase
from claudecluster.kit.clock import Clock
from claudecluster.model.event import Event
from claudecluster.ports.store import Store

SETTLE_SECONDS = 0.5  # how long the last facts may take to arrive after the run has ended


class Lines:
    """Says each fact in a line."""

    async def start(self) -> None:
        """Nothing to prepare."""

    async def heard(self, event: Event) -> None:
        """Say it."""
        if said := voice.one_line(phrase(event)):
            voice.say(f"{moment(event.at)}  {said}")

    async def stop(self) -> None:
        """Nothing to clean up."""


def _view(store: Store, run: str, clock: Clock) -> Any:
    if not sys.stderr.isatty():
        return Lines()
    live = load("claudecluster.cli.watch.live")
    return live.Live(store, run, clock) if live.movable() else Lines()


@asynccontextmanager
async def watching(store: Store, run: str, clock: Clock, after: int = 0) -> AsyncIterator[None]:
    """Show a run's facts with seq > after while the block runs, and those that were still on their way when it ends."""
    view = _view(store, run, clock)
    await view.start()
    seen = after

    async def follow() -> None:
        nonlocal seen
        async for event in store.since(run, after):
            await view.heard(event)
            seen = event.seq

    follower = asyncio.create_task(follow())
    try:
        yield
    finally:
        await _settle(store, run, lambda: seen, follower)
        follower.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await follower
        await view.stop()


async def _settle(store: Store, run: str, seen: Callable[[], int], follower: "asyncio.Task[None]") -> None:
    deadline = asyncio.get_running_loop().time() + SETTLE_SECONDS
    while not follower.done() and asyncio.get_running_loop().time() < deadline:
        if not await store.events(run, after=seen(), limit=1):
            return
        await asyncio.sleep(0.02)
