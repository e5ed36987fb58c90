"""The gateway inside our own process: one Unix socket and one token per attempt, all served by this event loop.

`assembly` builds it, the engine opens and closes doors. Which provider answers is decided in `routing/`; the sockets are `server/`'s.
"""

import hashlib
import secrets
from collections.abc import Mapping

from claudecluster.gateway.core import PROBES, Core, GatewayConfig, bodiless, forget, holds, misdirected
from claudecluster.gateway.routing.exchange import Visit
from claudecluster.gateway.routing.state import State
from claudecluster.gateway.server.listener import Listener, sweep
from claudecluster.gateway.server.message import Head, Refusal, Reply, Request
from claudecluster.model.errors import Unavailable
from claudecluster.ports.gateway import Door, Meter, Visitor

__all__ = ["GatewayConfig", "LocalGateway"]

ENV: Mapping[str, str] = {
    "ANTHROPIC_UNIX_SOCKET": "{socket}",
    "ANTHROPIC_BASE_URL": "http://gateway",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}
# A local model may read a long prompt for many minutes. Older CLIs count neither pings nor comments as signs of life.
PATIENT: Mapping[str, str] = {
    "CLAUDE_ENABLE_STREAM_WATCHDOG": "0",
    "CLAUDE_STREAM_IDLE_TIMEOUT_MS": "1800000",
    "API_FORCE_IDLE_TIMEOUT": "0",
}


class LocalGateway:
    """Serves doors from one event loop: open, close and aclose belong to the loop it is used in. Refused for a file that is no cassette."""

    def __init__(self, config: GatewayConfig, meter: Meter = forget) -> None:
        self._config = config
        self._core = Core(config, meter)
        self._doors: dict[str, Listener] = {}
        self._swept = False

    @property
    def state(self) -> State:
        """What it knows of its providers; `state.usage()` is the document of `claudecluster usage`."""
        return self._core.state

    async def check(self) -> None:
        """Raise Unavailable, with a hint, if no model could be reached through it as configured."""
        await self._core.check()

    async def delay(self, visitor: Visitor) -> float:
        """Return for how many seconds no model will answer such a visitor because of limits whose end is known; 0 if one may."""
        return await self._core.delay(visitor)

    async def recall(self) -> None:
        """Count what was metered before this process began, for budgets of runs and users. Raises Unavailable."""
        await self._core.state.recall()

    async def open(self, name: str, visitor: Visitor) -> Door:
        """Open a door under that name, replacing an older one. The token in `env` dies with it. Refused where no model may answer."""
        await self.close(name)
        await self._core.admissible(visitor)
        folder = self._config.sockets
        token = f"cc-{secrets.token_urlsafe(24)}"
        listener = Listener(_Porter(token, Visit(visitor), self._core), self._config.bounds)
        path = folder / f"{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}.sock"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._swept:
                self._swept = True
                sweep(folder)
            await listener.open_unix(path)
        except OSError as error:
            raise Unavailable(
                f"The gateway cannot make a socket in {folder}: {error.strerror}.", hint="Check the folder's permissions and the disk."
            ) from error
        self._doors[name] = listener
        return Door(path, {**ENV, **(PATIENT if self._config.local else {}), "ANTHROPIC_API_KEY": token})

    async def close(self, name: str) -> None:
        """Close the door, cutting its connections and removing its socket. Unknown names are fine."""
        door = self._doors.pop(name, None)
        if door is not None:
            await door.close()
            await self._core.settle()

    async def aclose(self) -> None:
        """Close every door and let go of all connections."""
        for name in tuple(self._doors):
            await self.close(name)
        await self._core.aclose()


class _Porter:
    """Lets in who holds the token, to the paths there are."""

    def __init__(self, token: str, visit: Visit, core: Core) -> None:
        self._token = token.encode()
        self._visit = visit
        self._core = core

    def admit(self, head: Head) -> Refusal | None:
        """Look at a request before its body is read."""
        if (refusal := bodiless(head)) is not None or head.method == "HEAD":
            return refusal
        if not holds(head, self._token):
            return Refusal(401, "This gateway does not know that token.", retry=False)
        return misdirected(head)

    async def serve(self, request: Request, reply: Reply) -> None:
        """Answer it."""
        if request.head.method == "HEAD":
            reply.start(200 if request.head.path in PROBES else 404, [], length=0)
            return
        await self._core.answer(self._visit, request, reply)
