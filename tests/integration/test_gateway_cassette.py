"""A run's model traffic, recorded through one gateway and played back through another that can reach nobody."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import claude_agent_sdk
import pytest

from claudecluster.gateway.core import GatewayConfig
from claudecluster.gateway.gateway import LocalGateway
from claudecluster.gateway.upstream.anthropic import AnthropicConfig
from claudecluster.gateway.upstream.keys import fixed
from claudecluster.model.errors import Refused
from claudecluster.model.usage import Metered
from claudecluster.ports.gateway import Door, Visitor
from claudecluster.testing.anthropic import ScriptedAnthropic
from claudecluster.testing.scenario import Scenario

CLI = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
NOWHERE = AnthropicConfig("http://127.0.0.1:9")
SCENARIO = Scenario.model_validate(
    {
        "sessions": [
            {
                "match": f"do {name}",
                "turns": [
                    {
                        "text": f"Doing {name}.",
                        "tools": [{"name": "Bash", "input": {"command": f"echo {name} >> {{cwd}}/ran; date; pwd", "description": "run"}}],
                    },
                    {"text": f"{name} is done. The key is sk-ant-api03-abcdefghijklmnopqrstuvwxyz."},
                ],
            }
            for name in ("one", "two", "three")
        ]
    }
)


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedAnthropic]:
    async with ScriptedAnthropic(SCENARIO, key="sk-real-secret") as server:
        yield server


async def ask(door: Door, *said: str) -> tuple[int, str, str]:
    messages = [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(said)]
    body = {"model": "claude-x", "max_tokens": 9, "stream": True, "messages": messages}
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(door.socket))) as session:
        headers = {"x-api-key": door.env["ANTHROPIC_API_KEY"], "anthropic-version": "2023-06-01"}
        async with session.post("http://gateway/v1/messages", json=body, headers=headers) as reply:
            return reply.status, reply.headers.get("x-claudecluster-provider", ""), await reply.text()


def said(stream: str) -> str:
    events = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: ")]
    return "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")


async def test_concurrent_conversations_play_back_whatever_their_order(upstream: ScriptedAnthropic, tmp_path: Path) -> None:
    tape = tmp_path / "run.cassette"
    live = LocalGateway(GatewayConfig(tmp_path / "a", AnthropicConfig(upstream.url, fixed("sk-real-secret")), record=tape))
    doors = {name: await live.open(name, Visitor("r1", name, 1)) for name in ("one", "two", "three")}
    recorded = dict(zip(doors, await asyncio.gather(*(ask(door, f"do {name} in /tmp/a1/x") for name, door in doors.items())), strict=True))
    await live.aclose()
    asked = len(upstream.messages)
    played_use: list[Metered] = []

    async def meter(record: Metered) -> None:
        played_use.append(record)

    replay = LocalGateway(GatewayConfig(tmp_path / "b", NOWHERE, replay=tape), meter)
    await replay.check()
    doors = {name: await replay.open(name, Visitor("r2", name, 1)) for name in ("three", "one", "two")}
    for name, door in doors.items():
        status, provider, text = await ask(door, f"do {name} in /tmp/b77/y")
        assert (status, provider) == (200, "anthropic")
        assert said(text) == said(recorded[name][2]) == f"Doing {name}."
        assert len(text) < len(recorded[name][2])
    status, _, text = await ask(doors["one"], "what nobody ever asked", "yes", "more")
    assert status == 400
    assert "no answer to this request" in text
    await replay.aclose()
    assert len(upstream.messages) == asked
    assert {(record.run, record.task, record.provider, record.usage.cost_usd) for record in played_use} == {
        ("r2", name, "replay", 0.0) for name in doors
    }
    assert all(record.usage.output_tokens for record in played_use)


async def test_a_cassette_holds_no_secret_and_is_nobody_elses_to_read(upstream: ScriptedAnthropic, tmp_path: Path) -> None:
    tape = tmp_path / "run.cassette"
    live = LocalGateway(GatewayConfig(tmp_path / "a", AnthropicConfig(upstream.url, fixed("sk-real-secret")), record=tape))
    door = await live.open("one", Visitor("r1", "one", 1))
    await ask(door, "do one", "Doing one.", "the key is sk-real-secret")
    await ask(door, "do one; echo sk-real-secret")
    await live.aclose()
    text = tape.read_text()
    assert "sk-real-secret" not in text
    assert "abcdefghijklmnopqrstuvwxyz" not in text
    assert door.env["ANTHROPIC_API_KEY"] not in text
    assert tape.stat().st_mode & 0o777 == 0o600
    assert all(json.loads(line) for line in text.splitlines())


async def test_a_file_that_is_no_cassette_is_refused(tmp_path: Path) -> None:
    (bad := tmp_path / "bad").write_text("hello\n")
    for path in (bad, tmp_path / "missing"):
        with pytest.raises(Refused, match="no cassette"):
            LocalGateway(GatewayConfig(tmp_path / "a", NOWHERE, replay=path))


@pytest.mark.skipif(not CLI.exists(), reason="this wheel of claude-agent-sdk carries no CLI")
async def test_a_real_session_is_played_back_without_a_network(upstream: ScriptedAnthropic, tmp_path: Path) -> None:
    tape = tmp_path / "run.cassette"
    results = []
    for number, config in enumerate(
        (
            GatewayConfig(tmp_path / "a", AnthropicConfig(upstream.url, fixed("sk-real-secret")), record=tape),
            GatewayConfig(tmp_path / "b", NOWHERE, replay=tape),
        )
    ):
        gateway = LocalGateway(config)
        door = await gateway.open("t", Visitor(f"r{number}", "one", 1))
        (home := tmp_path / f"home{number}").mkdir()
        (work := tmp_path / f"work{number}").mkdir()
        env = {name: value.replace("{socket}", str(door.socket)) for name, value in door.env.items()}
        process = await asyncio.create_subprocess_exec(
            *(str(CLI), "-p", "do one", "--output-format", "json", "--dangerously-skip-permissions"),
            cwd=work,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "IS_SANDBOX": "1", **env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        results.append((json.loads(out)["result"], [path.name for path in work.iterdir()]))
        await gateway.aclose()
    assert results[0] == ("one is done. The key is sk-ant-api03-abcdefghijklmnopqrstuvwxyz.", ["ran"])
    assert results[1][0] == "one is done. The key is [redacted]."
