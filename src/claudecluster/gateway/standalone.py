"""The gateway by itself, on a TCP port: for any Claude Code, with `/health`, `/metrics` and `/usage` beside the model API.

The command `claudecluster gateway` runs it. A client names itself by its token; what its requests belong to it may say in
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

from claudecluster.gateway.core import PROBES, Core, GatewayConfig, forget, holds, misdirected
from claudecluster.gateway.routing.exchange import Visit
from claudecluster.gateway.routing.state import Purse
from claudecluster.gateway.server.listener import Listener
from claudecluster.gateway.server.message import Head, Refusal, Reply, Request
from claudecluster.model.errors import Unavailable
from claudecluster.ports.gateway import Meter, Visitor

PAGES = ("/health", "/metrics", "/usage")


@dataclass(frozen=True, slots=True)
class StandaloneConfig:
    """Where to listen and who may come. `token` empty makes one; `users` maps more tokens to the names their use is counted under."""

    gateway: GatewayConfig
    host: str = "127.0.0.1"
    port: int = 0
    token: str = field(default="", repr=False)
    users: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Ready:
    """It listens: what to put into ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY."""

    url: str
    token: str = field(repr=False)
    usage: Callable[[], dict[str, Any]] = field(repr=False)  # the document of `GET /usage`


@asynccontextmanager
async def standalone(config: StandaloneConfig, meter: Meter = forget) -> AsyncIterator[Ready]:
    """Serve while the context lasts. Raises Unavailable if the address cannot be had, or if no model is configured."""
    core = Core(config.gateway, meter)
    token = config.token or f"cc-{secrets.token_urlsafe(24)}"
    listener = Listener(_Desk(core, {token: "", **config.users}, private=_loopback(config.host)), config.gateway.bounds)
    try:
        await core.check()
        try:
            host, port = await listener.open_tcp(config.host, config.port)
        except OSError as error:
            raise Unavailable(
                f"The gateway cannot listen on {config.host}:{config.port}: {error.strerror or error}.",
                hint="Choose another --port or --host.",
            ) from error
        yield Ready(f"http://{f'[{host}]' if ':' in host else host}:{port}", token, core.state.usage)
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

    def __init__(self, core: Core, tokens: Mapping[str, str], *, private: bool) -> None:
        self._core = core
        self._tokens = [(token.encode(), user, Purse()) for token, user in tokens.items()]
        self._private = private  # nobody from outside this machine can ask

    def admit(self, head: Head) -> Refusal | None:
        """Look at a request before its body is read."""
        if head.method == "HEAD" or (head.path == "/health" and head.method == "GET"):
            return None
        if head.path in PAGES:
            if head.method != "GET":
                return Refusal(405, f"{head.path} takes GET only.", retry=False, headers={"allow": "GET"})
            if self._private and not any(name in head.headers for name in ("x-api-key", "authorization")):
                return None
        if not any([holds(head, token) for token, _, _ in self._tokens]):  # noqa: C419 - always as many comparisons
            return Refusal(401, "This gateway does not know that token. Put the one it printed into ANTHROPIC_API_KEY.", retry=False)
        return None if head.path in PAGES else misdirected(head)

    async def serve(self, request: Request, reply: Reply) -> None:
        """Answer it."""
        head = request.head
        if head.path in PAGES:
            await self._page(head.path, reply)
        elif head.method == "HEAD":
            reply.start(200 if head.path in PROBES else 404, [], length=0)
        elif (visit := self._whose(head)) is not None:
            await self._core.answer(visit, request, reply)

    def _whose(self, head: Head) -> Visit | None:
        found = None
        for token, user, purse in self._tokens:
            if holds(head, token):
                found = Visit(_visitor(head), user or head.headers.get("x-claudecluster-user", ""), self._core.config.pass_login, purse)
        return found

    async def _page(self, path: str, reply: Reply) -> None:
        state = self._core.state
        if path == "/metrics":
            kind, body = "text/plain; version=0.0.4; charset=utf-8", state.page(self._core.waiting)
        elif path == "/usage":
            kind, body = "application/json", orjson.dumps(state.usage(self._core.waiting))
        else:
            providers = [{"name": row["name"], "kind": row["kind"], "state": row["state"]} for row in state.providers()]
            kind, body = "application/json", orjson.dumps({"status": "ok", "providers": providers})
        reply.start(200, [("content-type", kind), ("cache-control", "no-store")], length=len(body))
        await reply.end(body)


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
