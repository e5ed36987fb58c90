"""A key that is dear to read, remembered for a while. Used by the keyring and by Vault."""

import asyncio

from claudecluster.gateway.upstream.keys import KeySource
from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.model.errors import Unavailable


def kept(read: KeySource, seconds: float, clock: Clock | None = None) -> KeySource:
    """Return a source that reads at most once in that time; where reading fails, what was read last goes on serving."""
    ticking = clock or SystemClock()
    seen: list[tuple[float, str]] = []
    lock = asyncio.Lock()

    async def source() -> str:
        if seen and ticking.monotonic() < seen[0][0]:
            return seen[0][1]
        async with lock:
            if not seen or ticking.monotonic() >= seen[0][0]:
                try:
                    key = await read()
                except Unavailable:
                    if not seen:
                        raise
                    key = seen[0][1]
                seen[:] = [(ticking.monotonic() + seconds, key)]
        return seen[0][1]

    return source
