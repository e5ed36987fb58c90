"""A door, seen from the client's side: one socket and token per attempt, forwarding byte for byte, metering what passed."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from claudecluster.gateway.gateway import GatewayConfig, LocalGateway
from claudecluster.gateway.upstream.anthropic import AnthropicConfig
from claudecluster.gateway.upstream.keys import fixed
from claudecluster.model.errors import Unavailable
from claudecluster.model.usage import Metered
from claudecluster.ports.gateway import Door, Visitor

VISITOR = Visitor("r1", "fix", 1)
BODY = json.dumps({"model": "claude-opus-4-8", "max_tokens": 10, "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()


def events(*documents: dict) -> bytes:
    return b"".join(f"event: {document['type']}\ndata: {json.dumps(document)}\n\n".encode() for document in documents)


ANSWER = events(
    {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "model": "claude-opus-4-8",
            "role": "assistant",
            "content": [],
            "usage": {
                "input_tokens": 100,
                "output_tokens": 1,
                "cache_read_input_tokens": 2000,
                "cache_creation_input_tokens": 300,
                "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 100},
            },
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 20}},
    {"type": "message_stop"},
)


class Upstream:
    """A small Anthropic on loopback that remembers what it was asked and answers as told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.gone = asyncio.Event()
        self.answer = self.stream
        self.url = ""

    async def stream(self, request: web.Request, body: bytes) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"content-type": "text/event-stream", "request-id": "req_up", "anthropic-organization-id": "o"})
        await reply.prepare(request)
        for start in range(0, len(ANSWER), 97):
            await reply.write(ANSWER[start : start + 97])
        await reply.write_eof()
        return reply

    async def hang(self, request: web.Request, body: bytes) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await reply.prepare(request)
        await reply.write(ANSWER[:600])
        try:
            await asyncio.sleep(60)
        finally:
            self.gone.set()
        return reply

    async def serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.asked.append((request.method, request.path_qs, {k.lower(): v for k, v in request.headers.items()}, body))
        return await self.answer(request, body)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    double = Upstream()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_route("*", "/{tail:.*}", double.serve)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    double.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield double
    await runner.cleanup()


@pytest.fixture
def metered() -> list[Metered]:
    return []


@pytest.fixture
async def gateway(upstream: Upstream, metered: list[Metered], tmp_path: Path) -> AsyncIterator[LocalGateway]:
    async def meter(record: Metered) -> None:
        metered.append(record)

    config = GatewayConfig(tmp_path / "doors", AnthropicConfig(upstream.url + "/prefix", fixed("sk-real")))
    served = LocalGateway(config, meter)
    yield served
    await served.aclose()


def client(door: Door) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(door.socket)), auto_decompress=False)


def headers(door: Door, **more: str) -> dict[str, str]:
    return {"x-api-key": door.env["ANTHROPIC_API_KEY"], "content-type": "application/json", **more}


async def test_a_stream_passes_byte_for_byte_with_our_key_in_place_of_the_token(gateway: LocalGateway, upstream: Upstream) -> None:
    door = await gateway.open("r1.fix.1", VISITOR)
    async with client(door) as session:
        sent = headers(door, **{"anthropic-version": "2023-06-01", "anthropic-beta": "new-beta-2099", "x-claude-code-session-id": "s1"})
        async with session.post("http://gateway/v1/messages?beta=true", data=BODY, headers=sent) as reply:
            assert reply.status == 200
            assert await reply.read() == ANSWER
            assert reply.headers["request-id"] == "req_up"
            assert reply.headers["content-type"] == "text/event-stream"
    method, path, got, body = upstream.asked[0]
    assert (method, path, body) == ("POST", "/prefix/v1/messages?beta=true", BODY)
    assert got["x-api-key"] == "sk-real"
    assert got["anthropic-version"] == "2023-06-01"
    assert got["anthropic-beta"] == "new-beta-2099"
    assert door.env["ANTHROPIC_API_KEY"] not in json.dumps(got)
    assert "x-claude-code-session-id" not in got


async def test_usage_is_counted_once_per_message_with_both_cache_tiers(gateway: LocalGateway, metered: list[Metered]) -> None:
    door = await gateway.open("r1.fix.1", VISITOR)
    async with client(door) as session, session.post("http://gateway/v1/messages", data=BODY, headers=headers(door)) as reply:
        await reply.read()
    await gateway.close("r1.fix.1")
    (record,) = metered
    usage = record.usage
    assert (record.run, record.task, record.attempt, record.model) == ("r1", "fix", 1, "claude-opus-4-8")
    assert (usage.requests, usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens) == (1, 100, 20, 2000)
    assert (usage.cache_creation_5m_input_tokens, usage.cache_creation_1h_input_tokens) == (200, 100)
    assert usage.cost_usd == pytest.approx((100 * 5 + 20 * 25 + 2000 * 0.5 + 200 * 6.25 + 100 * 10) / 1e6)


async def test_an_error_passes_untouched(gateway: LocalGateway, upstream: Upstream) -> None:
    async def refuse(request: web.Request, body: bytes) -> web.Response:
        return web.Response(
            status=400,
            body=b'{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long"} }',
            headers={"x-should-retry": "false"},
        )

    upstream.answer = refuse
    door = await gateway.open("d", VISITOR)
    async with client(door) as session, session.post("http://gateway/v1/messages", data=BODY, headers=headers(door)) as reply:
        assert reply.status == 400
        assert await reply.read() == b'{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long"} }'
        assert reply.headers["x-should-retry"] == "false"


async def test_a_client_that_leaves_takes_its_request_upstream_with_it(
    gateway: LocalGateway, upstream: Upstream, metered: list[Metered]
) -> None:
    upstream.answer = upstream.hang
    door = await gateway.open("d", VISITOR)
    async with client(door) as session, session.post("http://gateway/v1/messages", data=BODY, headers=headers(door)) as reply:
        await reply.content.readany()
        reply.close()
    await asyncio.wait_for(upstream.gone.wait(), 10)
    await gateway.close("d")
    assert metered[0].usage.input_tokens == 100  # an interrupted turn counts


async def test_closing_a_door_cuts_its_clients_and_ends_its_token(gateway: LocalGateway, upstream: Upstream) -> None:
    upstream.answer = upstream.hang
    door = await gateway.open("d", VISITOR)
    async with client(door) as session, session.post("http://gateway/v1/messages", data=BODY, headers=headers(door)) as reply:
        await reply.content.readany()
        await gateway.close("d")
        with pytest.raises(aiohttp.ClientError):
            await reply.read()
    assert not door.socket.exists()
    again = await gateway.open("d", VISITOR)
    upstream.answer = upstream.stream
    async with client(again) as session, session.post("http://gateway/v1/messages", data=BODY, headers=headers(door)) as reply:
        assert reply.status == 401
        assert (await reply.json())["error"]["type"] == "authentication_error"
    assert len(upstream.asked) == 1


async def test_one_door_does_not_know_another_ones_token(gateway: LocalGateway, upstream: Upstream) -> None:
    one, other = await gateway.open("1", VISITOR), await gateway.open("2", VISITOR)
    async with client(one) as session, session.post("http://gateway/v1/messages", data=BODY, headers=headers(other)) as reply:
        assert reply.status == 401
    assert not upstream.asked


async def test_sixty_four_doors_serve_at_once(gateway: LocalGateway, metered: list[Metered]) -> None:
    doors = [await gateway.open(f"r1.t{n}.1", Visitor("r1", f"t{n}", 1)) for n in range(64)]

    async def one(door: Door) -> bytes:
        async with client(door) as session, session.post("http://gateway/v1/messages", data=BODY, headers=headers(door)) as reply:
            return await reply.read()

    assert await asyncio.gather(*(one(door) for door in doors)) == [ANSWER] * 64
    for n in range(64):
        await gateway.close(f"r1.t{n}.1")
    assert {record.task for record in metered} == {f"t{n}" for n in range(64)}


async def test_a_socket_may_lie_under_a_path_longer_than_the_kernel_takes(upstream: Upstream, tmp_path: Path) -> None:
    gateway = LocalGateway(GatewayConfig(tmp_path / ("long" * 30), AnthropicConfig(upstream.url, fixed("k"))))
    door = await gateway.open("d", VISITOR)
    assert len(str(door.socket)) > 108
    assert door.socket.stat().st_mode & 0o777 == 0o666
    assert door.socket.parent.stat().st_mode & 0o777 == 0o700
    (short := tmp_path / "s").symlink_to(door.socket.parent)
    connector = aiohttp.UnixConnector(path=str(short / door.socket.name))
    async with aiohttp.ClientSession(connector=connector) as session, session.head("http://gateway/") as reply:
        assert reply.status == 200
    await gateway.aclose()


async def test_a_dead_workers_sockets_are_swept_and_a_living_ones_stay(upstream: Upstream, tmp_path: Path) -> None:
    living = LocalGateway(GatewayConfig(tmp_path, AnthropicConfig(upstream.url)))
    kept = await living.open("kept", VISITOR)
    process = await asyncio.create_subprocess_exec(
        "python3", "-c", f"import socket; s=socket.socket(socket.AF_UNIX); s.bind('{tmp_path}/dead.sock'); s.listen()"
    )
    await process.wait()
    other = LocalGateway(GatewayConfig(tmp_path, AnthropicConfig(upstream.url)))
    await other.open("mine", VISITOR)
    assert not (tmp_path / "dead.sock").exists()
    assert kept.socket.exists()
    await living.aclose()
    await other.aclose()


async def test_an_old_worker_does_not_take_its_successors_socket_away(upstream: Upstream, tmp_path: Path) -> None:
    old, new = (LocalGateway(GatewayConfig(tmp_path, AnthropicConfig(upstream.url))) for _ in range(2))
    await old.open("r1.fix.1", VISITOR)
    door = await new.open("r1.fix.1", VISITOR)
    await old.aclose()
    async with client(door) as session, session.head("http://gateway/") as reply:
        assert reply.status == 200
    await new.aclose()
    assert not door.socket.exists()


async def test_it_says_when_no_model_can_be_reached(tmp_path: Path, upstream: Upstream) -> None:
    with pytest.raises(Unavailable) as caught:
        await LocalGateway(GatewayConfig(tmp_path)).check()
    assert "ANTHROPIC_API_KEY" in caught.value.hint
    await LocalGateway(GatewayConfig(tmp_path, AnthropicConfig(upstream.url))).check()
    await LocalGateway(GatewayConfig(tmp_path, AnthropicConfig(key=fixed("k")))).check()
