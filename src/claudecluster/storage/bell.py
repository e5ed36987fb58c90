"""Wakes those who follow the facts when this process writes one. Other processes' facts are found by polling.

Used by the store alone. It may be rung from any thread and heard on any event loop.
"""

import asyncio
import contextlib
from threading import Lock


class Bell:
    """Counts its rings, so that one between a look and a wait is not missed."""

    def __init__(self) -> None:
        self.rings = 0
        self._lock = Lock()
        self._heard_by: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def ring(self) -> None:
        """Wake everybody who waits."""
        with self._lock:
            self.rings += 1
            waiting = list(self._heard_by)
        for loop, event in waiting:
            with contextlib.suppress(RuntimeError):  # that loop has ended
                loop.call_soon_threadsafe(event.set)

    async def wait(self, rings: int, seconds: float) -> None:
        """Return once it has rung more than `rings` times, or after so many seconds of real time: other processes live in it."""
        event = asyncio.Event()
        mine = (asyncio.get_running_loop(), event)
        with self._lock:
            if self.rings > rings:
                return
            self._heard_by.add(mine)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await event.wait()
        finally:
            with self._lock:
                self._heard_by.discard(mine)
