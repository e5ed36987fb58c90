"""The real Claude Code CLI behind a door, with an Anthropic that fails in every way it is known to, and a local model beside it.

Each row says what the user sees, who answered, how often Anthropic was asked, and that the tool ran once.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import claude_agent_sdk
import pytest

from claudecluster.gateway.gateway import GatewayConfig, LocalGateway
from claudecluster.gateway.local.ollama import Ollama, OllamaConfig
from claudecluster.gateway.routing.policy import Fallback
from claudecluster.gateway.upstream.anthropic import AnthropicConfig
from claudecluster.gateway.upstream.keys import fixed
from claudecluster.model.usage import Metered
from claudecluster.ports.gateway import Door, Visitor
from claudecluster.testing.anthropic import ScriptedAnthropic
from claudecluster.testing.ollama import ScriptedOllama
from claudecluster.testing.ollama_wires import Reply
from claudecluster.testing.scenario import Scenario

CLI = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
pytestmark = pytest.mark.skipif(not CLI.exists(), reason="this wheel of claude-agent-sdk carries no CLI")
LIMIT = {"status": 429, "headers": {"retry-after": "7200"}}


@dataclass
class Told:
    """What the CLI printed and how it ended."""

    code: int
    lines: list[dict[str, Any]]
    folder: Path

    @property
    def result(self) -> dict[str, Any]:
        return self.lines[-1]

    @property
    def ran(self) -> list[str]:
        path = self.folder / "ran"
        return path.read_text().split() if path.exists() else []


@dataclass
class House:
    """A gateway between the CLI and two scripted servers."""

    anthropic: ScriptedAnthropic
    ollama: ScriptedOllama
    gateway: LocalGateway
    folder: Path
    metered: list[Metered] = field(default_factory=list)

    async def claude(self, prompt: str = "do it", visitor: Visitor | None = None, env: Mapping[str, str] | None = None) -> Told:
        door = await self.gateway.open("r1.t.1", visitor or Visitor("r1", "t", 1))
        told = await run_claude(door, self.folder, prompt, env or {})
        await self.gateway.close("r1.t.1")
        return told


async def run_claude(door: Door, folder: Path, prompt: str, env: Mapping[str, str]) -> Told:
    home, work = folder / "home", folder / "work"
    home.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    own = {name: value.replace("{socket}", str(door.socket)) for name, value in door.env.items()}
    argv = ("-p", prompt, "--output-format", "stream-json", "--verbose", "--dangerously-skip-permissions")
    process = await asyncio.create_subprocess_exec(
        str(CLI),
        *argv,
        cwd=work,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "IS_SANDBOX": "1", **own, **env},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), 90)
    finally:
        if process.returncode is None:
            process.kill()
    return Told(process.returncode or 0, [json.loads(line) for line in out.splitlines()], work)


def scenario(*first: dict[str, Any], turns: list[dict[str, Any]] | None = None, **more: Any) -> Scenario:
    """Return a session that runs one command and says so, with faults on its first turn."""
    default = [
        {
            "text": "I will run it.",
            "tools": [{"name": "Bash", "input": {"command": "echo anthropic >> ran", "description": "run"}}],
            "faults": list(first),
        },
        {"text": "Anthropic is done."},
    ]
    return Scenario.model_validate({"sessions": [{"match": "do it", "turns": turns or default, "closing": "closing"}], **more})


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    anthropic = ScriptedAnthropic(scenario(), key="sk-real")
    ollama = ScriptedOllama(otherwise=Reply("The local model is done."))
    await anthropic.start()
    await ollama.start()
    metered: list[Metered] = []

    async def meter(record: Metered) -> None:
        metered.append(record)

    local = Ollama(OllamaConfig(urls=(ollama.url,)))
    config = GatewayConfig(tmp_path / "s", AnthropicConfig(anthropic.url, fixed("sk-real")), local=(local,), fallback=Fallback())
    gateway = LocalGateway(config, meter)
    yield House(anthropic, ollama, gateway, tmp_path, metered)
    await gateway.aclose()
    await anthropic.stop()
    await ollama.stop()


async def test_a_session_runs_through_the_door_and_its_use_is_metered_to_the_token(house: House) -> None:
    told = await house.claude()
    assert (told.code, told.result["is_error"], told.result["result"]) == (0, False, "Anthropic is done.")
    assert told.ran == ["anthropic"]
    sent = house.anthropic.messages
    assert all(asked.headers["x-api-key"] == "sk-real" for asked in sent)
    assert {record.provider for record in house.metered} == {"anthropic"}
    assert sum(record.usage.requests for record in house.metered) == len(sent)
    assert sum(record.usage.output_tokens for record in house.metered) == told.result["usage"]["output_tokens"]
    assert sum(record.usage.cost_usd for record in house.metered) == pytest.approx(told.result["total_cost_usd"])


ROWS = {
    # name: (faults, most requests to Anthropic, tool lines)
    "429 with hours to wait": ([LIMIT], 1, 0),
    "429 with seconds to wait": ([{"status": 429, "headers": {"retry-after": "45"}}], 1, 0),
    "429 without a word": ([{"status": 429, "times": 5}], 1, 0),
    "529": ([{"status": 529, "times": 5}], 1, 0),
    "500": ([{"status": 500, "times": 5}], 3, 0),
    "503": ([{"status": 503, "times": 5}], 1, 0),
    "an error event at the start": ([{"sse_error": "overloaded_error", "at": "start", "times": 5}], 1, 0),
    "a limit as an error event": ([{"sse_error": "rate_limit_error", "at": "start", "times": 5}], 1, 0),
    "a cut before the first byte": ([{"cut": "before", "times": 5}], 4, 0),
    "a cut after message_start": ([{"cut": "start", "times": 5}], 4, 0),
    "HTML": ([{"garbage": "html", "times": 5}], 4, 0),
    "bad JSON": ([{"garbage": "json", "times": 5}], 4, 0),
    "an empty 200": ([{"garbage": "empty", "times": 5}], 4, 0),
}


@pytest.mark.parametrize("row", ROWS)
async def test_a_failure_before_the_answer_is_never_seen(house: House, row: str) -> None:
    faults, most, lines = ROWS[row]
    house.anthropic.scenario = scenario(*faults)
    told = await house.claude()
    assert (told.code, told.result["is_error"], told.result["result"]) == (0, False, "The local model is done.")
    assert len(told.ran) == lines
    assert len(house.anthropic.messages) <= most
    assert [line for line in told.lines if line.get("subtype") == "api_retry"] == []
    assert house.metered[-1].provider == "ollama"
    assert house.metered[-1].degraded


async def test_an_anthropic_that_is_gone_is_stood_in_for(house: House) -> None:
    await house.anthropic.stop()
    told = await house.claude()
    assert (told.code, told.result["result"]) == (0, "The local model is done.")


MIDWAY = {
    # name: (fault, tool lines)
    "a cut in the text": ({"cut": "mid-text"}, []),
    "a clean end in the text": ({"cut": "mid-text", "clean": True}, []),
    "a cut after the text": ({"cut": "after-text"}, []),
    "an error event after the text": ({"sse_error": "overloaded_error", "at": "after-text"}, []),
    "a cut in the tool call": ({"cut": "mid-tool"}, []),
    "a cut after the tool call": ({"cut": "after-tool"}, ["anthropic"]),
    "a clean end after the tool call": ({"cut": "after-tool", "clean": True}, ["anthropic"]),
    "a limit after the tool call": ({"sse_error": "rate_limit_error", "at": "after-tool"}, ["anthropic"]),
}


@pytest.mark.parametrize("row", MIDWAY)
async def test_a_session_that_breaks_midway_goes_on_and_no_tool_runs_twice(house: House, row: str) -> None:
    fault, ran = MIDWAY[row]
    turn = scenario().sessions[0].turns[0].model_dump(exclude_defaults=True)
    limited = {"text": "Not reached.", "faults": [{**LIMIT, "times": 20}]}
    house.anthropic.scenario = scenario(turns=[{**turn, "faults": [fault, {**LIMIT, "times": 20}]}, limited])
    told = await house.claude()
    assert (told.code, told.result["is_error"], told.result["result"]) == (0, False, "The local model is done.")
    assert told.ran == ran


async def test_a_session_whose_provider_always_breaks_off_after_the_tool_call_is_stopped_from_looping(house: House) -> None:
    turn = {
        "text": "Again.",
        "tools": [{"name": "Bash", "input": {"command": "echo anthropic >> ran", "description": "run"}}],
        "faults": [{"cut": "after-tool"}],
    }
    house.anthropic.scenario = scenario(turns=[turn] * 50)
    told = await house.claude()
    assert (told.code, told.result["result"]) == (0, "The local model is done.")
    assert 1 <= len(told.ran) <= 3  # a cut that comes with the call itself may swallow it before anybody has seen it


async def test_a_loop_without_a_stand_in_ends_in_words(house: House, tmp_path: Path) -> None:
    turn = {
        "text": "Again.",
        "tools": [{"name": "Bash", "input": {"command": "echo anthropic >> ran", "description": "run"}}],
        "faults": [{"cut": "after-tool"}],
    }
    house.anthropic.scenario = scenario(turns=[turn] * 50)
    told = await house.claude(visitor=Visitor("r1", "t", 1, fallback="never"))
    assert told.result["is_error"]
    assert "stopped the loop" in told.result["result"]
    assert 1 <= len(told.ran) <= 3  # a cut that comes with the call itself may swallow it before anybody has seen it


REFUSED = {
    "401": ({"status": 401}, "401"),
    "402": ({"status": 402}, "402"),
    "403": ({"status": 403}, "403"),
    "404": ({"status": 404}, "model"),
}


@pytest.mark.parametrize("row", REFUSED)
async def test_an_error_of_key_bill_or_model_is_shown_and_not_stood_in_for(house: House, row: str) -> None:
    fault, words = REFUSED[row]
    house.anthropic.scenario = scenario({**fault, "times": 20})
    told = await house.claude()
    assert told.code == 1
    assert told.result["is_error"]
    assert words in told.result["result"]
    assert len(house.anthropic.messages) <= 3
    assert house.ollama.count("/api/chat") == 0


async def test_a_private_task_never_reaches_anthropic(house: House) -> None:
    told = await house.claude(visitor=Visitor("r1", "t", 1, privacy="local"))
    assert told.result["result"] == "The local model is done."
    assert house.anthropic.requests == []
    assert not house.metered[-1].degraded


async def test_a_spent_budget_ends_the_session_with_the_reason(house: House) -> None:
    told = await house.claude(visitor=Visitor("r1", "t", 1, budget_tokens=10))
    assert told.result["is_error"]
    assert "budget of 10 tokens" in told.result["result"]
    assert len(house.anthropic.messages) == 1
