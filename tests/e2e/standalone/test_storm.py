"""The gateway command in a storm of limits, and what two of them on one state folder know of limits."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from claudecluster.testing.anthropic import ScriptedAnthropic
from claudecluster.testing.scenario import Scenario

CLIENTS = 32
LIMITED = 2.0  # seconds from the first request on
ANSWER = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5-5",
    "content": [{"type": "text", "text": "Hello."}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 2},
}


class Limited:
    """An Anthropic that answers 429 for a while, and then everybody."""

    def __init__(self) -> None:
        self.url = ""
        self.refused = self.answered = 0
        self.struck = asyncio.Event()
        self._ends = 0.0

    async def serve(self, request: web.Request) -> web.Response:
        await request.read()
        self._ends = self._ends or time.monotonic() + LIMITED
        if time.monotonic() < self._ends:
            self.refused += 1
            self.struck.set()
            body = {"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}}
            return web.json_response(body, status=429, headers={"retry-after": "1"})
        self.answered += 1
        return web.json_response({**ANSWER, "id": f"msg_{self.answered}"})


@pytest.fixture
async def limited() -> AsyncIterator[Limited]:
    double = Limited()
    app = web.Application()
    app.router.add_post("/v1/messages", double.serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    double.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield double
    await runner.cleanup()


@pytest.mark.parametrize(("first", "most"), [(CLIENTS, CLIENTS + 4), (1, 5)])
async def test_a_storm_of_limits_asks_no_more_than_once_each_and_everybody_is_answered(
    serving: Any, limited: Limited, first: int, most: int
) -> None:
    async with serving(limited.url) as gateway:
        begun = [asyncio.create_task(gateway.ask()) for _ in range(first)]
        await limited.struck.wait()
        begun += [asyncio.create_task(gateway.ask()) for _ in range(CLIENTS - first)]
        answers = await asyncio.gather(*begun)
        assert [status for status, _, _ in answers] == [200] * CLIENTS
        assert limited.answered == CLIENTS
        assert limited.refused <= most
        _, document = await gateway.page("/usage")
        assert document["total"]["requests"] == CLIENTS
        assert document["providers"][0]["state"] == "open"


async def test_two_gateways_on_one_state_folder_keep_each_others_limits(serving: Any, upstream: ScriptedAnthropic, cli: Any) -> None:
    turns = [{"text": "no", "faults": [{"status": 429, "headers": {"retry-after": "7200"}, "times": 9}]}]
    shut = ScriptedAnthropic(
        Scenario.model_validate({"sessions": [{"match": "hello", "turns": turns}]}), key="sk-ant-real-key-nobody-may-see"
    )
    async with shut, serving(upstream.url) as one:
        async with serving(shut.url) as other:
            assert (await other.ask(model="claude-opus-5-5"))[0] == 429
        assert (await one.ask(model="claude-sonnet-5-5"))[0] == 200  # the last to write, and it knows of no limit
    answer = await asyncio.to_thread(cli, "usage", "--json")
    (provider,) = answer.json()["providers"]
    assert (provider["state"], provider["why"], provider["returns"] is not None) == ("closed", "limited", True)
    assert {way["models"]: way["state"] for way in provider["ways"]} == {"opus": "closed", "sonnet": "open"}
