"""The gateway by itself, on a TCP port: for any Claude Code, with `/health`, `/metrics` and `/usage` beside the model API.

The command `claudecluster gateway` runs it. A client is known by its token; what its requests belong to it may say in
headers (`x-claudecluster-run`, `-task`, `-category`, `-privacy: local`, `-fallback: never`; see ANTHROPIC_CUSTOM_HEADERS).
"""

import asyncio
import ipaddress
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from claudecluster.gateway.core import PROBES, Core, GatewayConfig, bodiless, forget, misdirected, tokens
from claudecluster.gateway.guests import Full, Guest, Guests
from claudecluster.gateway.routing.exchange import Visit
from claudecluster.gateway.server.listener import Listener
from claudecluster.gateway.server.message import Head, Refusal, Reply, Request, refuse
from claudecluster.model.errors import Unavailable
from claudecluster.ports.gateway import Meter, Visitor

PAGES = ("/health", "/metrics", "/usage")
UNKNOWN = "This gateway does not know that token. Put the one it printed, or the one you were given, into ANTHROPIC_API_KEY."


@dataclass(frozen=True, slots=True)
class StandaloneConfig:
    """Where to listen and who may come. `token` empty makes one; `users` maps more tokens to whose they are."""

    gateway: GatewayConfig
    host: str = "127.0.0.1"
    port: int = 0
    token: str = field(default="", repr=False)
    users: Mapping[str, Guest] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Ready:
    """It listens: what to put into ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY.

    `usage` returns the document of `GET /usage`; `admit` replaces the users by others, from the next request on.
    """

    url: str
    token: str = field(repr=False)
    usage: Callable[[], dict[str, Any]] = field(repr=False)
    admit: Callable[[Mapping[str, Guest]], None] = field(repr=False)


@asynccontextmanager
async def standalone(config: StandaloneConfig, meter: Meter = forget) -> AsyncIterator[Ready]:
    """Serve while the context lasts. Raises Unavailable if the address cannot be had, or if no model is configured."""
    core = Core(config.gateway, meter)
    token = config.token or f"cc-{secrets.token_urlsafe(24)}"
    guests = Guests(token, config.users)
    listener = Listener(_Desk(core, guests, private=_loopback(config.host)), config.gateway.bounds)
    try:
        await core.check()
        await core.state.recall()
        try:
            host, port = await listener.open_tcp(config.host, config.port)
        except OSError as error:
            raise Unavailable(
                f"The gateway cannot listen on {config.host}:{config.port}: {error.strerror or error}.",
                hint="Choose another --port or --host.",
            ) from error
        yield Ready(f"http://{f'[{host}]' if ':' in host else host}:{port}", token, core.state.usage, guests.replace)
    finally:
        await listener.close()
        await core.aclose()


async def serve(config: StandaloneConfig, ready: Callable[[Ready], None], meter: Meter = forget) -> None:
    """Serve until cancelled; `ready` is called once it listens. Raises Unavailable."""
    async with standalone(config, meter) as address:
        ready(address)
        await asyncio.Event().wait()


class _Desk:
    """Lets in who holds a token, to the model API and to the pages about the gateway."""

    def __init__(self, core: Core, guests: Guests, *, private: bool) -> None:
        self._core = core
        self._guests = guests
        self._private = private  # nobody from outside this machine can ask

    def admit(self, head: Head) -> Refusal | None:
        """Look at a request before its body is read."""
        if head.path in PAGES and head.method not in {"GET", "HEAD"}:
            return Refusal(405, f"{head.path} takes GET only.", retry=False, headers={"allow": "GET"})
        if (refusal := bodiless(head)) is not None:
            return refusal
        if head.method == "HEAD" or head.path == "/health" or (head.path in PAGES and self._private and not tokens(head)):
            return None
        if self._guests.find(tokens(head)) is None:
            return Refusal(401, UNKNOWN, retry=False)
        return None if head.path in PAGES else misdirected(head)

    async def serve(self, request: Request, reply: Reply) -> None:
        """Answer it."""
        head = request.head
        guest = self._guests.find(tokens(head))
        if head.path in PAGES:
            await self._page(head.path, reply, guest or Guest())
        elif head.method == "HEAD":
            reply.start(200 if head.path in PROBES else 404, [], length=0)
        elif guest is None:  # taken off the list since its head was read
            await refuse(reply, Refusal(401, UNKNOWN, retry=False))
        else:
            await self._answer(guest, request, reply)

    async def _answer(self, guest: Guest, request: Request, reply: Reply) -> None:
        head, config = request.head, self._core.config
        visit = Visit(_visitor(head), guest.name or head.headers.get("x-claudecluster-user", "")[:100], guest.allowance, config.pass_login)
        try:
            async with self._guests.turn(guest, config.tuning.patience):
                await self._core.answer(visit, request, reply)
        except Full:
            why = f"{guest.name} has {guest.at_once} requests on their way already, which is all that user may have at once."
            await refuse(reply, Refusal(429, why, retry_after=5.0))

    async def _page(self, path: str, reply: Reply, guest: Guest) -> None:
        state = self._core.state
        if path == "/metrics":
            kind, body = "text/plain; version=0.0.4; charset=utf-8", state.page(self._core.waiting)
        elif path == "/usage":
            await state.refresh()
            document = state.usage(self._core.waiting)
            kind, body = "application/json", orjson.dumps(own(document, guest.name) if guest.name else document)
        else:
            providers = [{"name": row["name"], "kind": row["kind"], "state": row["state"]} for row in state.providers()]
            kind, body = "application/json", orjson.dumps({"status": "ok", "providers": providers})
        reply.start(200, [("content-type", kind), ("cache-control", "no-store")], length=len(body))
        await reply.end(body)


def own(document: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the part of a usage document that is one user's to see: what they have used, and how the providers are."""
    used = document["by_user"].get(name)
    others: dict[str, Any] = {scope: {} for scope in document if scope.startswith("by_")}
    nothing = {what: 0 for what in document["total"] if what != "degraded_requests"}
    return {**document, **others, "by_user": {name: used} if used else {}, "total": used or nothing, "advice": []}


def _visitor(head: Head) -> Visitor:
    said = {name.removeprefix("x-claudecluster-"): value for name, value in head.headers.items() if name.startswith("x-claudecluster-")}
    return Visitor(
        run=said.get("run", "")[:100],
        task=said.get("task", "")[:100],
        attempt=0,
        category=said.get("category", "")[:100],
        privacy="local" if said.get("privacy") == "local" else "any",
        fallback="never" if said.get("fallback") == "never" else "auto",
    )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
