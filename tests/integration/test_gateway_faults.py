"""Requests of Anthropic's own SDK to the gateway, of which a third meet a fault of some kind, as do some of those to its stand-in: nearly all of them are answered."""

import asyncio
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anthropic
import pytest

from claudecluster.gateway.core import GatewayConfig
from claudecluster.gateway.local.ollama import Ollama, OllamaConfig
from claudecluster.gateway.standalone import StandaloneConfig, standalone
from claudecluster.gateway.upstream.anthropic import AnthropicConfig
from claudecluster.gateway.upstream.keys import fixed
from claudecluster.limits.lane import Pace
from claudecluster.testing.anthropic import ScriptedAnthropic
from claudecluster.testing.ollama import ScriptedOllama
from claudecluster.testing.ollama_wires import Reply
from claudecluster.testing.scenario import Fault, Scenario, Session, Turn

KEY = "sk-ant-real-key-nobody-may-see"
TOKEN = "test-token"
KINDS = (
    {"status": 429, "headers": {"retry-after": "0"}},
    {"status": 429},
    {"status": 529},
    {"status": 500},
    {"status": 503},
    {"cut": "before"},
    {"cut": "start"},
    {"cut": "mid-text"},
    {"cut": "after-text"},
    {"cut": "mid-text", "clean": True},
    {"sse_error": "overloaded_error", "at": "start"},
    {"sse_error": "api_error", "at": "mid-text"},
    {"garbage": "html"},
    {"garbage": "json"},
    {"garbage": "empty"},
    {"hang": 0.05, "at": "mid-text"},
)


def faulty(requests: int, seed: int) -> Scenario:
    dice = random.Random(seed)
    sessions = []
    for number in range(requests):
        faults = tuple(Fault.model_validate(dice.choice(KINDS)) for _ in range(dice.choice((0, 0, 1, 2))))
        sessions.append(Session(match=f"number {number}$", turns=(Turn(text="An answer of some words.", faults=faults),)))
    return Scenario(sessions=tuple(sessions))


async def ask(client: anthropic.AsyncAnthropic, number: int, room: asyncio.Semaphore) -> str:
    """Return what became of one request: an empty string where a whole message came."""
    messages = [{"role": "user", "content": f"number {number}"}]
    async with room:
        try:
            if number % 2:
                async with client.messages.stream(model="claude-sonnet-5", max_tokens=50, messages=messages) as stream:  # type: ignore[arg-type]
                    message: Any = await stream.get_final_message()
            else:
                message = await client.messages.create(model="claude-sonnet-5", max_tokens=50, messages=messages)  # type: ignore[arg-type]
        except anthropic.AnthropicError as error:
            return f"{type(error).__name__}: {error}"
        return "" if message.stop_reason in {"end_turn", "max_tokens"} and message.content else f"half a message: {message}"


def stumbling(seed: int) -> Callable[[Mapping[str, Any]], Reply]:
    """Return a local model that fails one time in ten by itself."""
    dice = random.Random(seed)
    faults = (Reply(status=500, error="it broke"), Reply(status=503, error="server busy"), Reply("Here it br", cut_after=1))
    return lambda _: dice.choice(faults) if dice.random() < 0.1 else Reply("Here.")


@pytest.mark.parametrize("requests", [300, pytest.param(1000, marks=pytest.mark.slow)])
async def test_nearly_every_request_is_answered_whatever_goes_wrong(requests: int) -> None:
    async with ScriptedAnthropic(faulty(requests, 7), key=KEY) as upstream, ScriptedOllama(stumbling(7), parallel=4) as ollama:
        config = GatewayConfig(
            Path("unused"),
            AnthropicConfig(upstream.url, fixed(KEY)),
            local=(Ollama(OllamaConfig(urls=(ollama.url,), slots=4)),),
            pace=Pace(first=0.002, longest=0.01),  # so that Anthropic is asked again and again, and fails again and again
        )
        room = asyncio.Semaphore(16)
        async with (
            standalone(StandaloneConfig(config, token=TOKEN)) as ready,
            anthropic.AsyncAnthropic(base_url=ready.url, api_key=TOKEN, max_retries=0) as client,
        ):
            said = await asyncio.gather(*(ask(client, number, room) for number in range(requests)))
    failed = [answer for answer in said if answer]
    assert len(failed) <= requests / 200, failed
    assert requests / 10 < len(upstream.messages) <= 3 * requests
    print(f"{requests - len(failed)} of {requests} answered; {len(upstream.messages)} asked of Anthropic")  # noqa: T201 - shown with -s
