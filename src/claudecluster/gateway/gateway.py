"""The gateway inside our own process: one Unix socket and one token per attempt, all served by this event loop.

`assembly` builds it, the engine opens and closes doors. Which provider answers is decided in `routing/`; the sockets are `server/`'s.
"""

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from claudecluster.gateway.metering.prices import Price, Prices
from claudecluster.gateway.provider import COUNT_TOKENS, MESSAGES, MODELS, Provider
from claudecluster.gateway.routing.exchange import Exchange, Tuning, Visit
from claudecluster.gateway.routing.policy import Budgets, Fallback, Policy, Rule
from claudecluster.gateway.routing.state import State
from claudecluster.gateway.server.connection import Bounds
from claudecluster.gateway.server.listener import Listener, sweep
from claudecluster.gateway.server.message import Head, Refusal, Reply, Request
from claudecluster.gateway.upstream.anthropic import Anthropic, AnthropicConfig
from claudecluster.limits.lane import Pace
from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.model.errors import ClusterError, Unavailable
from claudecluster.model.usage import Metered
from claudecluster.ports.gateway import Door, Meter, Visitor

ENV: Mapping[str, str] = {
    "ANTHROPIC_UNIX_SOCKET": "{socket}",
    "ANTHROPIC_BASE_URL": "http://gateway",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}
PROBES = frozenset({"/", "/api/hello"})
METHODS: Mapping[str, str] = {MESSAGES: "POST", COUNT_TOKENS: "POST", MODELS: "GET"}


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """All the gateway is told. `sockets` is a folder of its own; `local` are the back ends on the user's machines, best first.

    `tier` (api, pro, max5, max20) counts windows where the server reports none. `pass_login` lets a user's own subscription
    login through to Anthropic, in flight only. `fallback` is shared: changing it changes the routing from the next request on.
    """

    sockets: Path
    anthropic: AnthropicConfig = field(default_factory=AnthropicConfig)
    local: tuple[Provider, ...] = ()
    fallback: Fallback = field(default_factory=Fallback)
    rules: tuple[Rule, ...] = ()
    budgets: Budgets = field(default_factory=Budgets)
    tier: str = "api"
    prices: Mapping[str, Price] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    tuning: Tuning = field(default_factory=Tuning)
    pass_login: bool = False
    bounds: Bounds = field(default_factory=Bounds)
    clock: Clock = field(default_factory=SystemClock)


async def forget(metered: Metered) -> None:
    """Take a record and do nothing with it."""


class LocalGateway:
    """Serves doors from one event loop: open, close and aclose belong to the loop it is used in."""

    def __init__(self, config: GatewayConfig, meter: Meter = forget) -> None:
        self._config = config
        self._meter = meter
        self._anthropic = Anthropic(config.anthropic)
        self._providers: tuple[Provider, ...] = (self._anthropic, *config.local)
        self.state = State(self._providers, config.fallback, config.clock, tier=config.tier, pace=config.pace)
        policy = Policy(self._providers, config.fallback, config.rules, config.budgets)
        self._exchange = Exchange(policy, self.state, Prices(config.prices), self._record, config.tuning)
        self._doors: dict[str, Listener] = {}
        self._metering: set[asyncio.Task[None]] = set()
        self._swept = False

    async def check(self) -> None:
        """Raise Unavailable, with a hint, if no model could be reached through it as configured."""
        if not self._config.local and not await self._anthropic.configured():
            raise Unavailable(
                "No model can be reached: there is no Anthropic API key and no local model.",
                hint="Set ANTHROPIC_API_KEY, or OLLAMA_BASE_URL for a local model.",
            )

    async def open(self, name: str, visitor: Visitor) -> Door:
        """Open a door under that name, replacing an older one. The token in `env` dies with it."""
        await self.close(name)
        folder = self._config.sockets
        token = f"cc-{secrets.token_urlsafe(24)}"
        listener = Listener(_Porter(token, Visit(visitor), self._answer), self._config.bounds)
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
        return Door(path, {**ENV, "ANTHROPIC_API_KEY": token})

    async def close(self, name: str) -> None:
        """Close the door, cutting its connections and removing its socket. Unknown names are fine."""
        door = self._doors.pop(name, None)
        if door is not None:
            await door.close()
        await self._settle()

    async def aclose(self) -> None:
        """Close every door and let go of all connections."""
        for name in tuple(self._doors):
            await self.close(name)
        await self._settle()
        await self._exchange.admission.aclose()
        for provider in self._providers:
            await provider.aclose()

    async def _answer(self, visit: Visit, request: Request, reply: Reply) -> None:
        await self._exchange.answer(visit, request, reply, await self._absent())

    async def _absent(self) -> frozenset[str]:
        try:
            configured = await self._anthropic.configured()
        except ClusterError:
            configured = True  # a key that cannot be read is an error to be seen, not a reason to go elsewhere
        return frozenset() if configured else frozenset({self._anthropic.name})

    def _record(self, metered: Metered) -> None:
        task = asyncio.get_running_loop().create_task(self._written(metered))
        self._metering.add(task)
        task.add_done_callback(self._metering.discard)

    async def _written(self, metered: Metered) -> None:
        try:
            await self._meter(metered)
        except Exception as error:  # noqa: BLE001 - the meter is another room's; its failure must not fail a request
            context = {"message": "a metered request could not be recorded", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    async def _settle(self) -> None:
        """Wait until what was metered is written down."""
        while self._metering:
            await asyncio.wait(set(self._metering))


class _Porter:
    """Lets in who holds the token, to the paths there are."""

    def __init__(self, token: str, visit: Visit, answer: Callable[[Visit, Request, Reply], Awaitable[None]]) -> None:
        self._token = token.encode()
        self._visit = visit
        self._answer = answer

    def admit(self, head: Head) -> Refusal | None:
        """Look at a request before its body is read."""
        if head.method == "HEAD":
            return None
        if not any(hmac.compare_digest(shown.encode(), self._token) for shown in tokens(head)):
            return Refusal(401, "This gateway does not know that token.", retry=False)
        method = METHODS.get(head.path)
        if method is None:
            return Refusal(404, f"The gateway has no {head.path[:200]}.", retry=False)
        if head.method != method:
            return Refusal(405, f"{head.path} takes {method} only.", retry=False)
        return None

    async def serve(self, request: Request, reply: Reply) -> None:
        """Answer it."""
        if request.head.method == "HEAD":  # Claude Code's probe at its start
            reply.start(200 if request.head.path in PROBES else 404, [], length=0)
            return
        await self._answer(self._visit, request, reply)


def tokens(head: Head) -> list[str]:
    """Return the tokens a request shows, in either of the ways Claude Code has."""
    shown = [head.headers.get("x-api-key", "")]
    scheme, _, value = head.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        shown.append(value.strip())
    return [token for token in shown if token]
