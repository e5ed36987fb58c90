"""A scripted Anthropic Messages API on loopback, for demos and tests: no model, no network, no cost.

The real Claude Code CLI and the official SDK work against it. What it says comes from a scenario (`scenario.py`); which turn it is comes
from the request itself (`conversation.py`), so retries, resumed sessions and killed clients are answered consistently.
It proves nothing about models. Run it alone with

    python -m claudecluster.testing.anthropic --scenario FILE [--port 0] [--key KEY] [--pace 1.0]

which prints one line of JSON, `{"url": …}`, when it serves, and ends with SIGTERM or SIGINT.
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.model.errors import ClusterError
from claudecluster.testing import conversation, wire
from claudecluster.testing.conversation import Answer
from claudecluster.testing.scenario import Fault, Scenario, due, load

MODELS = ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5")
BIGGEST = 64 * 1024**2
PING_EVERY = 1.0
NAMES = uuid.UUID("0b6e6a3c-5f0e-4d0c-9d8c-6a8b7c1f0e55")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it arrived. `headers` have lower-case names; `body` is parsed JSON, empty if there was none."""

    id: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def session(self) -> str:
        """The client's session id, if it named one."""
        return self.headers.get("x-claude-code-session-id", "")

    @property
    def prompt(self) -> str:
        """The conversation's first prompt."""
        return conversation.first_prompt(self.body.get("messages", ()))


class ScriptedAnthropic:
    """Serves a scenario between `start` and `stop` (or inside `async with`). `requests` holds everything it was asked, in order.

    With `key`, requests must carry it (x-api-key, or as bearer) or get a 401. `pace` multiplies every delay of the scenario: 0 for tests.
    """

    def __init__(self, scenario: Scenario, *, key: str = "", pace: float = 0.0, seed: int = 1, clock: Clock | None = None) -> None:
        self.scenario = scenario
        self.requests: list[Asked] = []
        self._key = key
        self._pace = pace
        self._seed = seed
        self._random = random.Random(seed)  # noqa: S311 - pacing, not secrets
        self._clock = clock or SystemClock()
        self._struck: Counter[str] = Counter()
        self._runner: web.AppRunner | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """The base URL for ANTHROPIC_BASE_URL; empty before `start`."""
        return self._url

    @property
    def messages(self) -> list[Asked]:
        """The model requests among `requests`."""
        return [asked for asked in self.requests if asked.path == "/v1/messages"]

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> None:
        """Listen. Raises OSError if the port is taken."""
        app = web.Application(client_max_size=BIGGEST)
        app.router.add_post("/v1/messages", self._messages)
        app.router.add_post("/v1/messages/count_tokens", self._count)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/", self._hello)
        app.router.add_get("/api/hello", self._hello)
        app.router.add_route("*", "/{rest:.*}", self._unknown)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        self._url = f"http://{host}:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Stop listening and cut what is open."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        asked = await self._note(request)
        if refusal := self._refusal(asked):
            return refusal
        answer = conversation.answer(self.scenario, asked.body)
        fault = self._fault(asked, answer)
        if fault is not None and (early := await self._early(fault, request, asked)) is not None:
            return early
        await self._wait(answer.turn.delay if answer.turn.delay is not None else self.scenario.pace.first)
        reply = self._reply(asked, answer)
        if not asked.body.get("stream"):
            if fault is not None and fault.sse_error:
                return self._json(asked, wire.error(500, fault.message, kind=fault.sse_error, request=asked.id), 500)
            return self._json(asked, wire.whole(reply), headers=answer.turn.headers)
        return await self._stream(request, asked, reply, fault)

    async def _stream(self, request: web.Request, asked: Asked, reply: wire.Reply, fault: Fault | None) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={**self._headers(asked, reply.turn.headers), "content-type": "text/event-stream", "cache-control": "no-cache"}
        )
        chunk = reply.turn.chunk if reply.turn.chunk is not None else self.scenario.pace.chunk
        with contextlib.suppress(ConnectionResetError):  # the client went away: its right
            await response.prepare(request)
            for step in wire.steps(reply):
                closing = step.data.startswith(b"event: message_delta")
                if fault is not None and closing and await self._late(fault, request, response):
                    return response
                fault = None if closing else fault
                await response.write(step.data)
                if fault is not None and wire.strikes(fault.point, step.point, closing=False):
                    if await self._late(fault, request, response):
                        return response
                    fault = None
                if step.text:
                    await self._wait(chunk)
            await response.write_eof()
        return response

    async def _early(self, fault: Fault, request: web.Request, asked: Asked) -> web.StreamResponse | None:
        """Carry out what goes wrong before the first byte; None if the fault strikes later."""
        if fault.status is not None:
            body = fault.body if fault.body is not None else wire.error(fault.status, fault.message, request=asked.id)
            if isinstance(body, str):
                return web.Response(text=body, status=fault.status, headers=self._headers(asked, fault.headers))
            return self._json(asked, body, fault.status, fault.headers)
        if fault.garbage is not None:
            return self._garbage(fault.garbage, asked)
        if fault.point == "before" and fault.hang is not None:
            await self._clock.sleep(fault.hang)
        if fault.cut == "before" or (fault.cut and not asked.body.get("stream")):
            _drop(request)
            return web.Response()
        return None

    async def _late(self, fault: Fault, request: web.Request, response: web.StreamResponse) -> bool:
        """Carry out a fault inside a stream. True: the stream is over."""
        if fault.hang is not None:
            await self._hang(fault, response)
            return False
        if fault.sse_error is not None:
            await response.write(wire.error_event(fault.sse_error, fault.message))
        if fault.clean or fault.sse_error is not None:
            await response.write_eof()
        else:
            _drop(request)
        return True

    async def _hang(self, fault: Fault, response: web.StreamResponse) -> None:
        if fault.point == "before":
            return
        left = fault.hang or 0.0
        while left > 0:
            await self._clock.sleep(min(PING_EVERY, left) if fault.pings else left)
            left = left - PING_EVERY if fault.pings else 0
            if fault.pings:
                await response.write(wire.ping())

    def _fault(self, asked: Asked, answer: Answer) -> Fault | None:
        """Return the fault that is due: the scenario's own first, then the turn's, counted per conversation."""
        turn = f"{asked.session or asked.prompt}/{answer.place.session}/{answer.place.turn}"
        for name, faults in (("", self.scenario.faults), (turn, () if answer.final else answer.turn.faults)):
            if (fault := due(faults, self._struck[name])) is not None:
                self._struck[name] += 1
                return fault
        return None

    def _reply(self, asked: Asked, answer: Answer) -> wire.Reply:
        salt = uuid.uuid5(NAMES, f"{self._seed}/{asked.session or asked.prompt}").hex[:8]
        ids = tuple(answer.place.tool_id(salt, index) for index in range(len(answer.turn.tools)))
        message = "msg_" + uuid.uuid5(NAMES, asked.id).hex[:24]
        return wire.Reply(message, str(asked.body["model"]), answer.turn, ids, wire.claimed(answer.turn, asked.body))

    def _refusal(self, asked: Asked) -> web.Response | None:
        given = asked.headers.get("x-api-key") or asked.headers.get("authorization", "").removeprefix("Bearer ")
        if self._key and given != self._key:
            return self._json(asked, wire.error(401, "invalid x-api-key", request=asked.id), 401)
        if "anthropic-version" not in asked.headers:
            return self._json(asked, wire.error(400, "anthropic-version: header is required", request=asked.id), 400)
        missing = [name for name in ("model", "max_tokens", "messages") if not asked.body.get(name)]
        if missing and asked.path == "/v1/messages":
            return self._json(asked, wire.error(400, f"{missing[0]}: Field required", request=asked.id), 400)
        if why := conversation.pairing_error(asked.body.get("messages", ())):
            return self._json(asked, wire.error(400, why, request=asked.id), 400)
        return None

    async def _count(self, request: web.Request) -> web.Response:
        asked = await self._note(request)
        return self._refusal(asked) or self._json(asked, {"input_tokens": wire.estimate(asked.body)})

    async def _models(self, request: web.Request) -> web.Response:
        asked = await self._note(request)
        data = [{"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"} for name in MODELS]
        return self._json(asked, {"data": data, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]})

    async def _hello(self, request: web.Request) -> web.Response:
        return self._json(await self._note(request), {"message": "hello"})

    async def _unknown(self, request: web.Request) -> web.Response:
        asked = await self._note(request)
        return self._json(asked, wire.error(404, f"{asked.path}: not found", request=asked.id), 404)

    async def _note(self, request: web.Request) -> Asked:
        raw = await request.read()
        try:
            body = json.loads(raw) if raw else {}
        except ValueError:
            body = {}
        headers = {name.lower(): value for name, value in request.headers.items()}
        number = len(self.requests) + 1
        asked = Asked(f"req_{self._seed:02d}{number:08d}", request.method, request.path, headers, body if isinstance(body, dict) else {})
        self.requests.append(asked)
        return asked

    def _headers(self, asked: Asked, more: Mapping[str, str]) -> dict[str, str]:
        limits = wire.limit_headers(self._clock.now(), len(self.requests))
        return {"request-id": asked.id, **limits, **self.scenario.headers, **more}

    def _json(self, asked: Asked, body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
        return web.json_response(body, status=status, headers=self._headers(asked, headers or {}))

    def _garbage(self, kind: str, asked: Asked) -> web.Response:
        if kind == "html":
            return web.Response(text="<html><body>Bad gateway</body></html>", content_type="text/html", headers=self._headers(asked, {}))
        text = "" if kind == "empty" else 'event: message_start\ndata: {"type": "message_start", "mess\n\n'
        return web.Response(text=text, content_type="text/event-stream", headers=self._headers(asked, {}))

    async def _wait(self, seconds: float) -> None:
        wanted = seconds * self._pace * self._random.uniform(0.7, 1.3)
        if wanted > 0:
            await self._clock.sleep(wanted)


def _drop(request: web.Request) -> None:
    """Cut the connection as a dying server does."""
    if request.transport is not None:
        request.transport.abort()


async def _serve(arguments: argparse.Namespace) -> None:
    server = ScriptedAnthropic(load(arguments.scenario), key=arguments.key, pace=arguments.pace, seed=arguments.seed)
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await server.start(arguments.port, arguments.host)
    sys.stdout.write(json.dumps({"url": server.url}) + "\n")
    sys.stdout.flush()
    await ended.wait()
    await server.stop()


def main() -> None:
    """Serve a scenario until stopped."""
    parser = argparse.ArgumentParser(prog="python -m claudecluster.testing.anthropic", description="A scripted Anthropic Messages API.")
    parser.add_argument("--scenario", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default="", help="requests must carry it")
    parser.add_argument("--pace", type=float, default=1.0, help="multiplies every delay of the scenario")
    parser.add_argument("--seed", type=int, default=1)
    try:
        asyncio.run(_serve(parser.parse_args()))
    except (ClusterError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
