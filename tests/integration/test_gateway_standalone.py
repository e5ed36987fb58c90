"""The gateway by itself: Anthropic's own SDK as its client, its pages, and what it does with bad input."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import pytest

from claudecluster.gateway.core import GatewayConfig
from claudecluster.gateway.local.ollama import Ollama, OllamaConfig
from claudecluster.gateway.server.intake import Bounds
from claudecluster.gateway.standalone import Ready, StandaloneConfig, standalone
from claudecluster.gateway.upstream.anthropic import AnthropicConfig
from claudecluster.gateway.upstream.keys import fixed
from claudecluster.model.errors import Unavailable
from claudecluster.testing.anthropic import ScriptedAnthropic
from claudecluster.testing.ollama import ScriptedOllama
from claudecluster.testing.ollama_wires import Reply
from claudecluster.testing.scenario import Scenario

HELLO = [{"role": "user", "content": "hello"}]
TOKEN = "test-token"


def scenario(*faults: dict[str, Any], **turn: Any) -> Scenario:
    turns = [{"text": "Hello from Anthropic.", "faults": list(faults), **turn}]
    return Scenario.model_validate({"sessions": [{"match": "hello", "turns": turns}]})


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedAnthropic]:
    async with ScriptedAnthropic(scenario(), key="sk-real") as server:
        yield server


@pytest.fixture
async def ollama() -> AsyncIterator[ScriptedOllama]:
    async with ScriptedOllama(otherwise=Reply("Hello from here.")) as server:
        yield server


@asynccontextmanager
async def served(upstream: ScriptedAnthropic, ollama: ScriptedOllama | None, silence: float = 60, **more: Any) -> AsyncIterator[Ready]:
    local = () if ollama is None else (Ollama(OllamaConfig(urls=(ollama.url,))),)
    config = GatewayConfig(Path("unused"), AnthropicConfig(upstream.url, fixed("sk-real"), silence=silence), local=local, **more)
    async with standalone(StandaloneConfig(config, token=TOKEN)) as ready:
        yield ready


def sdk(ready: Ready) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=ready.url, api_key=ready.token, max_retries=0)


async def page(ready: Ready, path: str, **headers: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.get(ready.url + path, headers=headers) as reply:
        return reply.status, await reply.read()


async def raw(ready: Ready, data: bytes, *, wait: float = 10) -> bytes:
    """Send bytes, return everything that comes back until the connection closes."""
    host, port = ready.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), wait)
    finally:
        writer.close()


async def test_anthropics_own_sdk_is_served_streaming_and_not(upstream: ScriptedAnthropic, ollama: ScriptedOllama) -> None:
    async with served(upstream, ollama) as ready, sdk(ready) as client:
        reply = await client.messages.with_raw_response.create(model="claude-sonnet-5", max_tokens=10, messages=HELLO)
        assert reply.headers["x-claudecluster-provider"] == "anthropic"
        assert reply.headers["x-claudecluster-model"] == "claude-sonnet-5"
        assert reply.headers["request-id"]
        assert (await reply.parse()).content[0].text == "Hello from Anthropic."
        async with client.messages.stream(model="claude-sonnet-5", max_tokens=10, messages=HELLO) as stream:
            assert await stream.get_final_text() == "Hello from Anthropic."
        counted = await client.messages.count_tokens(model="claude-sonnet-5", messages=HELLO)
        assert counted.input_tokens > 0
        assert [model.id async for model in client.models.list()]


async def test_the_sdk_gets_a_stand_in_where_anthropic_is_limited(upstream: ScriptedAnthropic, ollama: ScriptedOllama) -> None:
    upstream.scenario = scenario({"status": 429, "headers": {"retry-after": "60"}, "times": 9})
    async with served(upstream, ollama) as ready, sdk(ready) as client:
        reply = await client.messages.with_raw_response.create(model="claude-sonnet-5", max_tokens=10, messages=HELLO)
        assert reply.headers["x-claudecluster-provider"] == "ollama"
        assert (await reply.parse()).content[0].text == "Hello from here."
        async with client.messages.stream(model="claude-sonnet-5", max_tokens=10, messages=HELLO) as stream:
            assert await stream.get_final_text() == "Hello from here."
        assert len(upstream.messages) == 1  # the second request did not even ask
        counted = await client.messages.count_tokens(model="claude-sonnet-5", messages=HELLO)
        assert counted.input_tokens > 0
        usage = json.loads((await page(ready, "/usage"))[1])
        assert usage["providers"][0]["state"] == "closed"
        assert usage["providers"][0]["why"] == "limited"
        assert usage["total"]["degraded_requests"] == 2


async def test_a_limit_without_a_stand_in_passes_untouched_with_its_retry_after(upstream: ScriptedAnthropic) -> None:
    upstream.scenario = scenario({"status": 429, "headers": {"retry-after": "7200"}, "times": 9})
    async with served(upstream, None) as ready, sdk(ready) as client:
        for _ in range(3):
            with pytest.raises(anthropic.RateLimitError) as caught:
                await client.messages.create(model="claude-sonnet-5", max_tokens=10, messages=HELLO)
            assert 7000 < int(caught.value.response.headers["retry-after"]) <= 7201
        assert len(upstream.messages) == 1


@pytest.mark.parametrize("at", ["before", "start"])
async def test_an_upstream_that_falls_silent_is_stood_in_for(upstream: ScriptedAnthropic, ollama: ScriptedOllama, at: str) -> None:
    upstream.scenario = scenario({"hang": 30, "at": at})
    slow = ScriptedAnthropic(upstream.scenario, key="sk-real", pace=1.0)
    async with slow, served(slow, ollama, silence=0.3) as ready, sdk(ready) as client:
        async with client.messages.stream(model="claude-sonnet-5", max_tokens=10, messages=HELLO) as stream:
            assert await stream.get_final_text() == "Hello from here."
        assert len(slow.messages) == 1


async def test_pages_tell_health_metrics_and_use(upstream: ScriptedAnthropic, ollama: ScriptedOllama) -> None:
    async with served(upstream, ollama) as ready, sdk(ready) as client:
        await client.messages.create(
            model="claude-sonnet-5", max_tokens=10, messages=HELLO, extra_headers={"x-claudecluster-run": "r1", "x-claudecluster-task": "t"}
        )
        status, body = await page(ready, "/health")
        assert (status, json.loads(body)["status"]) == (200, "ok")
        status, body = await page(ready, "/metrics")
        assert status == 200
        assert b'claudecluster_gateway_requests_total{provider="anthropic",status="200"} 1.0' in body
        status, body = await page(ready, "/usage", **{"x-api-key": TOKEN})
        usage = json.loads(body)
        assert usage["total"]["requests"] == usage["by_run"]["r1"]["requests"] == usage["by_task"]["r1/t"]["requests"] == 1
        assert usage["by_model"]["claude-sonnet-5"]["cost_usd"] > 0
        assert (await page(ready, "/usage", **{"x-api-key": "wrong"}))[0] == 401


async def test_a_private_request_stays_and_one_that_wants_no_stand_in_gets_none(
    upstream: ScriptedAnthropic, ollama: ScriptedOllama
) -> None:
    upstream.scenario = scenario({"status": 529, "times": 9})
    async with served(upstream, ollama) as ready, sdk(ready) as client:
        reply = await client.messages.create(
            model="claude-x", max_tokens=10, messages=HELLO, extra_headers={"x-claudecluster-privacy": "local"}
        )
        assert reply.content[0].text == "Hello from here."
        assert upstream.messages == []
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(
                model="claude-x", max_tokens=10, messages=HELLO, extra_headers={"x-claudecluster-fallback": "never"}
            )
        assert caught.value.status_code == 529


async def test_the_switch_sends_everything_to_the_local_model_and_back(upstream: ScriptedAnthropic, ollama: ScriptedOllama) -> None:
    switch = [False]
    async with served(upstream, ollama, connected=lambda: switch[0]) as ready, sdk(ready) as client:
        for switch[0], provider in ((False, "anthropic"), (True, "ollama"), (False, "anthropic")):
            reply = await client.messages.with_raw_response.create(model="claude-x", max_tokens=10, messages=HELLO)
            assert reply.headers["x-claudecluster-provider"] == provider


async def test_traffic_moves_over_at_the_threshold_before_the_limit_hits(upstream: ScriptedAnthropic, ollama: ScriptedOllama) -> None:
    reset = str(int(time.time()) + 3600)
    near = {
        "anthropic-ratelimit-unified-5h-utilization": "0.83",
        "anthropic-ratelimit-unified-5h-reset": reset,
        "anthropic-ratelimit-unified-status": "allowed_warning",
    }
    upstream.scenario = scenario(headers=near)
    async with served(upstream, ollama) as ready, sdk(ready) as client:
        names = [
            (await client.messages.with_raw_response.create(model="claude-x", max_tokens=10, messages=HELLO)).headers[
                "x-claudecluster-provider"
            ]
            for _ in range(3)
        ]
        assert names == ["anthropic", "ollama", "ollama"]
        windows = {window["name"]: window for window in json.loads((await page(ready, "/usage"))[1])["providers"][0]["windows"]}
        assert windows["five_hour"]["used"] == 0.83
        assert windows["five_hour"]["resets"] is not None
    async with served(upstream, None) as ready, sdk(ready) as client:  # with nowhere to go it goes on
        for _ in range(3):
            await client.messages.create(model="claude-x", max_tokens=10, messages=HELLO)


BAD = {
    "an unknown path": (
        b"POST /v1/complete HTTP/1.1\r\nhost: x\r\nx-api-key: test-token\r\ncontent-length: 2\r\n\r\n{}",
        404,
        "not_found_error",
    ),
    "a wrong method": (b"GET /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: test-token\r\n\r\n", 405, "invalid_request_error"),
    "no token": (b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}", 401, "authentication_error"),
    "a wrong token": (
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: no\r\ncontent-length: 2\r\n\r\n{}",
        401,
        "authentication_error",
    ),
    "JSON that is none": (
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: test-token\r\ncontent-length: 2\r\n\r\n{]",
        400,
        "invalid_request_error",
    ),
    "a list for a body": (
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: test-token\r\ncontent-length: 2\r\n\r\n[]",
        400,
        "invalid_request_error",
    ),
    "no model": (
        b'POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: test-token\r\ncontent-length: 16\r\n\r\n{"messages": []}',
        400,
        "invalid_request_error",
    ),
    "two lengths": (
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: test-token\r\ncontent-length: 2\r\ncontent-length: 40\r\n\r\n{}",
        400,
        "invalid_request_error",
    ),
    "a length and chunks": (
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: test-token\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "invalid_request_error",
    ),
    "chunks in disguise": (
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: test-token\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        400,
        "invalid_request_error",
    ),
    "two tokens": (
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: no\r\nx-api-key: test-token\r\ncontent-length: 2\r\n\r\n{}",
        400,
        "invalid_request_error",
    ),
    "a folded header": (
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: test-token\r\nx-a: b\r\n  content-length: 9\r\n\r\n",
        400,
        "invalid_request_error",
    ),
    "a space before the colon": (
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: test-token\r\ncontent-length : 2\r\n\r\n{}",
        400,
        "invalid_request_error",
    ),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello", 400, "invalid_request_error"),
    "a huge length": (
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: test-token\r\ncontent-length: 99999999999\r\n\r\n",
        413,
        "request_too_large",
    ),
    "a huge header": (b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 200_000 + b"\r\n\r\n", 431, "invalid_request_error"),
    "many headers": (
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x-%d: a\r\n" % n for n in range(500)) + b"\r\n",
        431,
        "invalid_request_error",
    ),
    "an upgrade": (
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: test-token\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\n{}",
        400,
        "invalid_request_error",
    ),
    "a target that is no URL": (
        b"POST /v1/messages?\xff\xfe HTTP/1.1\r\nhost: x\r\nx-api-key: test-token\r\ncontent-length: 2\r\n\r\n{}",
        400,
        "invalid_request_error",
    ),
    "a tunnel": (b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org\r\n\r\n", 401, "authentication_error"),
}


@pytest.mark.parametrize("row", BAD)
async def test_bad_input_is_told_so_in_anthropics_shape_and_reaches_nobody(upstream: ScriptedAnthropic, row: str) -> None:
    data, status, kind = BAD[row]
    async with served(upstream, None, bounds=Bounds(idle_seconds=0.3)) as ready:
        answer = await raw(ready, data)
        head, _, body = answer.partition(b"\r\n\r\n")
        if row in {"JSON that is none", "a list for a body", "no model"}:
            body = body[: int(head.lower().partition(b"content-length: ")[2].split()[0])]
        assert head.startswith(b"HTTP/1.1 %d " % status), answer[:200]
        assert json.loads(body)["error"]["type"] == kind
    assert upstream.requests == []


async def test_a_body_without_end_is_refused_with_little_memory(upstream: ScriptedAnthropic) -> None:
    bounds = Bounds(body=100_000)
    async with served(upstream, None, bounds=bounds) as ready:
        head = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: test-token\r\ntransfer-encoding: chunked\r\n\r\n"
        answer = await raw(ready, head + b"8000\r\n" + b"a" * 0x8000 + b"\r\n" + (b"8000\r\n" + b"a" * 0x8000 + b"\r\n") * 5)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert bounds.held == 0
    assert upstream.requests == []


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/mess", b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: test-token\r\ncontent-length: 50\r\n\r\n{"]
)
async def test_a_client_that_dawdles_is_cut(upstream: ScriptedAnthropic, sent: bytes) -> None:
    async with served(upstream, None, bounds=Bounds(head_seconds=0.2, body_seconds=0.2)) as ready:
        answer = await raw(ready, sent)
        assert answer == b"" if not sent else answer.startswith(b"HTTP/1.1 408 ")
    assert upstream.requests == []


async def test_too_many_connections_are_turned_away(upstream: ScriptedAnthropic) -> None:
    async with served(upstream, None, bounds=Bounds(connections=2)) as ready:
        host, port = ready.url.removeprefix("http://").split(":")
        held = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        assert (await raw(ready, b"")).startswith(b"HTTP/1.1 529 ")
        for _, writer in held:
            writer.close()


async def test_requests_sent_ahead_are_answered_in_order(upstream: ScriptedAnthropic) -> None:
    one = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    two = b"GET /usage HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    async with served(upstream, None) as ready:
        answer = await raw(ready, one + two)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.index(b'"status"') < answer.index(b'"total"')


async def test_a_taken_port_and_a_missing_model_are_said_plainly(upstream: ScriptedAnthropic) -> None:
    async with served(upstream, None) as ready:
        port = int(ready.url.rpartition(":")[2])
        with pytest.raises(Unavailable, match="cannot listen"):
            async with standalone(StandaloneConfig(GatewayConfig(Path("unused"), AnthropicConfig(upstream.url)), port=port)):
                pytest.fail("two gateways on one port")
    with pytest.raises(Unavailable, match="No model can be reached"):
        async with standalone(StandaloneConfig(GatewayConfig(Path("unused")))):
            pytest.fail("a gateway to nowhere")


async def test_a_users_own_login_passes_in_flight_only_where_that_is_allowed(upstream: ScriptedAnthropic) -> None:
    login = {"authorization": "Bearer sk-ant-oat01-mine", "x-claudecluster-token": TOKEN}
    body = {"model": "m", "max_tokens": 1, "messages": HELLO}
    for allowed in (False, True):
        async with (
            served(upstream, None, pass_login=allowed) as ready,
            aiohttp.ClientSession() as session,
            session.post(ready.url + "/v1/messages", json=body, headers=login) as reply,
        ):
            await reply.read()
        asked = upstream.messages[-1].headers
        assert ("x-api-key" in asked, asked.get("authorization")) == ((False, "Bearer sk-ant-oat01-mine") if allowed else (True, None))
        assert "x-claudecluster-token" not in asked
