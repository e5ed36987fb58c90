"""Who may come to a gateway that stands by itself: its owner, and guests with tokens of their own, replaced while requests go on.

`standalone.py` asks for each request; `assembly` says who is on the list. Tokens are kept as digests only.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from claudecluster.limits.allowance import Allowance


class Full(Exception):
    """A guest has as many requests on their way as they may have."""


@dataclass(frozen=True, slots=True)
class Guest:
    """One user: the name their use is counted under (empty: the owner), what they may spend, and how many requests they get at once."""

    name: str = ""
    allowance: Allowance = field(default_factory=Allowance)
    at_once: int | None = None


class Guests:
    """The list. `owner` is the token of whoever runs the gateway; it is always on it."""

    def __init__(self, owner: str, guests: Mapping[str, Guest] | None = None) -> None:
        self._owner = owner
        self._known: Mapping[bytes, Guest] = {}
        self._turns: dict[str, tuple[int, asyncio.Semaphore]] = {}
        self.replace(guests or {})

    def replace(self, guests: Mapping[str, Guest]) -> None:
        """Let in these and nobody else, by token, from the next request on; requests on their way go on."""
        self._known = {_digest(token): guest for token, guest in {**guests, self._owner: Guest()}.items() if token}

    def find(self, tokens: Iterable[str]) -> Guest | None:
        """Return whose token one of these is; the owner's before others. None knows nobody."""
        # A digest is looked up, so the time it takes tells nothing about tokens.
        found = [guest for token in tokens if (guest := self._known.get(_digest(token))) is not None]
        return min(found, key=lambda guest: guest.name, default=None)

    @asynccontextmanager
    async def turn(self, guest: Guest, seconds: float) -> AsyncIterator[None]:
        """Wait until a guest has room for one more request, and hold it while the context lasts. Raises Full after `seconds`."""
        if guest.at_once is None:
            yield
            return
        most, room = self._turns.get(guest.name, (0, None))
        if room is None or most != guest.at_once:
            room = asyncio.Semaphore(guest.at_once)
            self._turns[guest.name] = (guest.at_once, room)
        try:
            async with asyncio.timeout(seconds):
                await room.acquire()
        except TimeoutError:
            raise Full from None
        try:
            yield
        finally:
            room.release()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
