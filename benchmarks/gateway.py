"""What the gateway adds: time to first byte, throughput, memory, and the time a switch to a stand-in takes.

Everything is measured in one run on one machine, against the bare upstream and against a bare aiohttp pass-through. The body is
one of Claude Code's size (76 KB). Upstream, gateway and pass-through are processes of their own; the client is this one.
Noise from other work on the machine only ever adds, so of several rounds the quietest counts: the one in which the bare upstream
was quickest for latencies, the best one of each server for throughput.

    python benchmarks/gateway.py [--quick] [--json FILE] [--litellm PROGRAM] [--router PROGRAM]

LiteLLM's proxy and claude-code-router are measured beside it, in the same way, where their programs are given or on PATH. They are
no part of this project: `pip install 'litellm[proxy]'`, `npm install @musistudio/claude-code-router`, somewhere else.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from claudecluster.gateway.core import GatewayConfig
from claudecluster.gateway.provider import Answer, Ask, Failure, Health, Kind, Verdict
from claudecluster.gateway.standalone import Ready, StandaloneConfig, serve
from claudecluster.gateway.upstream.anthropic import AnthropicConfig
from claudecluster.gateway.upstream.keys import fixed
from servers import PEERS, Child, found, start

TOKEN = "sk-bench-0123456789abcdef"  # LiteLLM wants one that begins so
TEXT = "word " * 12
ROUNDS = 6


def body(kilobytes: int = 76) -> bytes:
    """Return a request of Claude Code's shape: a system text, many tool schemas, a short conversation."""
    tool = {
        "name": "Tool",
        "description": "d" * 1500,
        "input_schema": {"type": "object", "properties": {"p": {"type": "string", "description": "x" * 1000}}},
    }
    document: dict[str, Any] = {
        "model": "claude-opus-4-8",
        "max_tokens": 64000,
        "stream": True,
        "system": [{"type": "text", "text": "s" * 6000, "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "fix the bug"}]}],
        "metadata": {"user_id": "{}"},
        "tools": [],
    }
    while len(json.dumps(document)) < kilobytes * 1024 - 2800:
        document["tools"].append({**tool, "name": f"Tool{len(document['tools'])}"})
    document["messages"][0]["content"][0]["text"] += " " * (kilobytes * 1024 - len(json.dumps(document)))
    return json.dumps(document).encode()


def events() -> list[bytes]:
    """Return a stream of thirty pieces."""
    usage = {"input_tokens": 100, "output_tokens": 1, "cache_read_input_tokens": 2000, "cache_creation_input_tokens": 300}
    documents: list[dict[str, Any]] = [
        {
            "type": "message_start",
            "message": {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-opus-4-8", "content": [], "usage": usage},
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}} for _ in range(30)),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 400}},
        {"type": "message_stop"},
    ]
    return [f"event: {document['type']}\ndata: {json.dumps(document)}\n\n".encode() for document in documents]


async def upstream() -> None:
    """Serve the stream; a request with `x-limit` gets a 429."""
    pieces = events()

    async def messages(request: web.Request) -> web.StreamResponse:
        await request.read()
        if b"limited" in request.headers.get("anthropic-beta", "").encode():
            return web.Response(
                status=429, headers={"retry-after": "0"}, body=b'{"type":"error","error":{"type":"rate_limit_error","message":"no"}}'
            )
        reply = web.StreamResponse(headers={"content-type": "text/event-stream", "request-id": "req_1"})
        await reply.prepare(request)
        for piece in pieces:
            await reply.write(piece)
        await reply.write_eof()
        return reply

    await _serve_web(messages)


async def passthrough(target: str) -> None:
    """Serve a bare aiohttp proxy: what one would write in twenty lines."""
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)

    async def messages(request: web.Request) -> web.StreamResponse:
        data = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in {"host", "content-length"}}
        async with session.post(target + request.path_qs, data=data, headers=headers) as answer:
            reply = web.StreamResponse(status=answer.status, headers={"content-type": answer.headers["content-type"]})
            await reply.prepare(request)
            async for piece in answer.content.iter_any():
                await reply.write(piece)
            await reply.write_eof()
            return reply

    await _serve_web(messages)


async def _serve_web(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> None:
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/messages", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(json.dumps({"url": f"http://127.0.0.1:{runner.addresses[0][1]}"}), flush=True)
    await asyncio.Event().wait()


class Instant:
    """A local model that answers at once."""

    name = "instant"
    kind: Kind = "local"

    def load(self) -> float:
        return 0.0

    async def send(self, ask: Ask) -> Answer:  # noqa: ARG002 - the port's signature
        async def pieces() -> Any:
            for piece in events():
                yield piece

        return Answer(200, {"content-type": "text/event-stream"}, pieces(), model="instant")

    def classify(self, failure: Failure) -> Verdict:  # noqa: ARG002 - the port's signature
        return Verdict.STOP

    async def healthy(self) -> Health:
        return Health(ok=True)

    async def aclose(self) -> None:
        pass


async def gateway(target: str) -> None:
    """Serve the gateway by itself."""
    config = GatewayConfig(Path("unused"), AnthropicConfig(target, fixed("sk-real")), local=(Instant(),))

    def ready(address: Ready) -> None:
        print(json.dumps({"url": address.url}), flush=True)

    await serve(StandaloneConfig(config, token=TOKEN), ready)


async def one(session: aiohttp.ClientSession, url: str, data: bytes, **headers: str) -> tuple[float, float]:
    """Ask once. Returns seconds to the first byte of the body and to the last."""
    begun = time.perf_counter()
    sent = {"x-api-key": TOKEN, "content-type": "application/json", "anthropic-version": "2023-06-01", **headers}
    async with session.post(f"{url}/v1/messages?beta=true", data=data, headers=sent) as reply:
        assert reply.status == 200, await reply.text()
        await reply.content.readany()
        first = time.perf_counter() - begun
        while await reply.content.readany():
            pass
    return first, time.perf_counter() - begun


async def latencies(urls: dict[str, str], data: bytes, rounds: int) -> dict[str, list[float]]:
    """Ask each in turn, so that all meet the same weather."""
    times: dict[str, list[float]] = {name: [] for name in urls}
    async with aiohttp.ClientSession() as session:
        for number in range(rounds + 20):
            for name, url in urls.items():
                first, _ = await one(session, url, data)
                if number >= 20:
                    times[name].append(first * 1000)
    return times


async def throughput(url: str, data: bytes, requests: int, concurrency: int = 32) -> float:
    """Return requests a second."""
    left = iter(range(requests))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def worker() -> None:
            for _ in left:
                await one(session, url, data)

        begun = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return requests / (time.perf_counter() - begun)


async def switching(url: str, data: bytes, rounds: int) -> list[float]:
    """Return milliseconds from a request that meets a limit to the stand-in's first byte."""
    times = []
    async with aiohttp.ClientSession() as session:
        for _ in range(rounds):
            first, _ = await one(session, url, data, **{"anthropic-beta": "limited"})
            times.append(first * 1000)
    return times


def centiles(times: list[float]) -> dict[str, float]:
    """Return p50 and p95."""
    ordered = sorted(times)
    return {"p50": round(statistics.median(ordered), 3), "p95": round(ordered[int(len(ordered) * 0.95)], 3)}


async def beside(bare: Child, ours: Child, programs: Mapping[str, Path], *, quick: bool) -> dict[str, Any]:
    """Measure other people's gateways and ours in turn, on the same upstream."""
    rounds, requests, many = (40, 320, 320) if quick else (120, 960, 1000)
    data = body()
    async with AsyncExitStack() as stack:
        children = {"gateway": ours}
        for name, program in programs.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            children[name] = await PEERS[name][1](program, bare.url, folder, TOKEN)
            stack.push_async_callback(children[name].stop)
        urls = {"bare": bare.url, **{name: child.url for name, child in children.items()}}
        weathers = [await latencies(urls, data, rounds) for _ in range(3)]
        times = min(weathers, key=lambda each: statistics.median(each["bare"]))
        rates: dict[str, list[float]] = {name: [] for name in children}
        for _ in range(3):
            for name, child in children.items():
                rates[name].append(await throughput(child.url, data, requests // 3))
        before = {name: child.memory() for name, child in children.items()}
        for child in children.values():
            await throughput(child.url, data, many)
        after = {name: child.memory() for name, child in children.items()}
    return {
        name: {
            "added_first_byte_ms": added(times[name], times["bare"]),
            "requests_per_second_at_32": round(max(rates[name]), 1),
            "memory_mb": {"before": round(before[name] / 1e6, 1), "after": round(after[name] / 1e6, 1), "requests": many},
        }
        for name in children
    }


def added(times: list[float], bare: list[float]) -> dict[str, float]:
    """Return what p50 and p95 were added, in milliseconds."""
    more = [here - there for here, there in zip(times, bare, strict=True)]
    return {"p50": round(centiles(times)["p50"] - centiles(bare)["p50"], 3), "p95": centiles(more)["p95"]}


async def measure(programs: Mapping[str, Path], *, quick: bool) -> dict[str, Any]:
    """Run all of it."""
    rounds, requests, many = (300, 1800, 1500) if quick else (900, 4800, 10_000)
    data = body()
    bare = await start(__file__, "upstream")
    thin, ours = await start(__file__, "passthrough", bare.url), await start(__file__, "gateway", bare.url)
    try:
        urls = {"bare": bare.url, "passthrough": thin.url, "gateway": ours.url}
        weathers = [await latencies(urls, data, rounds // ROUNDS) for _ in range(ROUNDS)]
        times = min(weathers, key=lambda each: statistics.median(each["bare"]))
        rates: dict[str, list[float]] = {"passthrough": [], "gateway": []}
        for _ in range(ROUNDS):
            rates["passthrough"].append(await throughput(thin.url, data, requests // ROUNDS))
            rates["gateway"].append(await throughput(ours.url, data, requests // ROUNDS))
        before = ours.memory()
        await throughput(ours.url, data, many)
        after = ours.memory()
        switches = await switching(ours.url, data, rounds)
        others = await beside(bare, ours, programs, quick=quick) if programs else {}
    finally:
        for child in (ours, thin, bare):
            await child.stop()
    rate = {name: max(each) for name, each in rates.items()}
    return {
        "body_bytes": len(data),
        "first_byte_ms": {name: centiles(each) for name, each in times.items()},
        "added_first_byte_ms": added(times["gateway"], times["bare"]),
        "requests_per_second_at_32": {name: round(each) for name, each in rate.items()},
        "share_of_passthrough": round(rate["gateway"] / rate["passthrough"], 3),
        "memory_mb": {"before": round(before / 1e6, 1), "after": round(after / 1e6, 1), "requests": many},
        "switch_ms": centiles(switches),
        "beside": others,
    }


GOALS = {
    "added time to first byte p50 <= 1.0 ms": lambda found: found["added_first_byte_ms"]["p50"] <= 1.0,
    "added time to first byte p95 <= 3.0 ms": lambda found: found["added_first_byte_ms"]["p95"] <= 3.0,
    "throughput at 32 >= 75 % of a bare pass-through": lambda found: found["share_of_passthrough"] >= 0.75,
    "memory grows by less than 10 MB": lambda found: found["memory_mb"]["after"] - found["memory_mb"]["before"] < 10,
    "switch p95 < 50 ms": lambda found: found["switch_ms"]["p95"] < 50,
}


def main() -> int:
    """Measure, print, and say whether the goals are met."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", nargs="?", default="measure")
    parser.add_argument("target", nargs="?", default="")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    for name, (program, _) in PEERS.items():
        parser.add_argument(f"--{name}", type=Path, metavar="PROGRAM", help=f"measure it too; else `{program}` on PATH, if it is there")
    given = parser.parse_args()
    if given.role != "measure":
        role = {"upstream": upstream, "passthrough": lambda: passthrough(given.target), "gateway": lambda: gateway(given.target)}[
            given.role
        ]
        asyncio.run(role())
        return 0
    programs = {name: program for name in PEERS if (program := found(name, getattr(given, name)))}
    result = asyncio.run(measure(programs, quick=given.quick))
    result["goals"] = {goal: reached(result) for goal, reached in GOALS.items()}
    print(json.dumps(result, indent=2))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2))
    return 0 if all(result["goals"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
