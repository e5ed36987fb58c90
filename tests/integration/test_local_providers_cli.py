"""The real Claude Code CLI, and the official Anthropic client, work on a local model through the translation."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import claude_agent_sdk
import orjson
import pytest
from aiohttp import web
from anthropic import AsyncAnthropic, BadRequestError

from claudecluster.gateway.core import GatewayConfig
from claudecluster.gateway.local.compatible import Compatible, CompatibleConfig
from claudecluster.gateway.local.ollama import Ollama, OllamaConfig
from claudecluster.gateway.provider import Ask, Failure, Provider
from claudecluster.gateway.standalone import Ready, StandaloneConfig, standalone
from claudecluster.gateway.upstream.anthropic import AnthropicConfig
from claudecluster.gateway.upstream.keys import fixed
from claudecluster.testing.ollama import OllamaModel, ScriptedOllama
from claudecluster.testing.ollama_wires import Reply, ToolCall

CLI = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
needs_cli = pytest.mark.skipif(not CLI.exists(), reason="this platform's wheel carries no Claude Code CLI")


@dataclass(slots=True)
class Front:
    """The least gateway there can be: one provider behind Anthropic's paths."""

    provider: Provider
    asked: list[Mapping[str, Any]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    url: str = ""

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if request.method != "POST":
            return web.Response()
        body = await request.read()
        payload = orjson.loads(body)
        self.asked.append(payload)
        ask = Ask("POST", request.path, request.query_string, {}, body, payload, payload["model"], payload.get("stream") is True)
        try:
            answer = await self.provider.send(ask)
        except Failure as failure:
            return web.Response(status=502, body=failure.body, content_type="application/json")
        self.statuses.append(answer.status)
        response = web.StreamResponse(status=answer.status, headers=dict(answer.headers))
        await response.prepare(request)
        try:
            async for piece in answer.body:
                await response.write(piece)
        except Failure as failure:
            await response.write(b"event: error\ndata: " + failure.body + b"\n\n")
        finally:
            await answer.close()
        await response.write_eof()
        return response


@asynccontextmanager
async def fronted(server: ScriptedOllama, wire: str = "ollama", **config: Any) -> AsyncIterator[Front]:
    async with server:
        if wire == "ollama":
            front = Front(Ollama(OllamaConfig((server.url,), **config)))
        else:
            front = Front(Compatible(CompatibleConfig(server.url, wire=wire, context=65_536, **config)))
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", front.serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        front.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield front
        finally:
            await runner.cleanup()
            await front.provider.aclose()


@dataclass(frozen=True, slots=True)
class Session:
    lines: list[dict[str, Any]]
    code: int | None

    @property
    def result(self) -> dict[str, Any]:
        return self.lines[-1]

    def results(self) -> list[str]:
        """Return what the tools answered."""
        blocks = [block for line in self.lines if line["type"] == "user" for block in line["message"]["content"] if isinstance(block, dict)]
        return [str(block["content"]) for block in blocks if block["type"] == "tool_result"]


async def claude(front: Front | Ready, home: Path, prompt: str, *more: str, **env: str) -> Session:
    """Run the CLI on the prompt; further prompts follow as turns of the same session."""
    work = home / "work"
    work.mkdir(parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        str(CLI), "-p", "--output-format", "stream-json", "--input-format", "stream-json", "--verbose", "--dangerously-skip-permissions",
        cwd=work,
        env={
            "PATH": os.environ["PATH"], "HOME": str(home), "IS_SANDBOX": "1", "ANTHROPIC_BASE_URL": front.url, "ANTHROPIC_API_KEY": "sk-test",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "CLAUDE_CODE_MAX_RETRIES": "1", **env,
        },
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, limit=16 * 1024 * 1024,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    lines: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(60):
            for text in (prompt, *more):
                process.stdin.write(orjson.dumps({"type": "user", "message": {"role": "user", "content": text}}) + b"\n")
                await process.stdin.drain()
                while line := await process.stdout.readline():
                    lines.append(orjson.loads(line))
                    if lines[-1]["type"] == "result":
                        break
            process.stdin.close()
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Session([line for line in lines if line["type"] in {"assistant", "user", "result", "system"}], process.returncode)


@needs_cli
@pytest.mark.parametrize("wire", ["ollama", "openai", "anthropic"])
async def test_the_cli_completes_a_task_with_three_tools(tmp_path: Path, wire: str) -> None:
    path = str(tmp_path / "home" / "work" / "hello.txt")
    script = [
        Reply("I write the file.", calls=(ToolCall("Write", {"file_path": path, "content": "hello\n"}),), thinking="hmm"),
        Reply(calls=(ToolCall("Bash", {"command": "cat hello.txt | tr a-z A-Z > loud.txt; cat loud.txt", "description": "shout"}),)),
        Reply(calls=(ToolCall("Read", {"file_path": path}),)),
        Reply("Done: HELLO"),
    ]
    server = ScriptedOllama(script, models=(OllamaModel(capabilities=("completion", "tools", "thinking")),))
    async with fronted(server, wire) as front:
        session = await claude(front, tmp_path / "home", "make hello.txt and shout it")
    assert session.code == 0
    assert (session.result["is_error"], session.result["result"]) == (False, "Done: HELLO")
    assert (tmp_path / "home" / "work" / "loud.txt").read_text() == "HELLO\n"
    assert server.count() == 4
    told = orjson.dumps(server.bodies()[-1]).decode()
    assert "HELLO" in told
    assert told.count("hello.txt | tr a-z A-Z") == 1
    assert str(tmp_path / "home" / "work") in told.split("make hello.txt and shout it")[0]  # the environment: it came with role system
    assert "x-anthropic-billing-header" not in str(server.bodies())
    assert set(front.statuses) == {200}


@needs_cli
async def test_the_cli_runs_parallel_calls_and_sees_what_failed(tmp_path: Path) -> None:
    script = [
        Reply(calls=tuple(ToolCall("Bash", {"command": command, "description": "x"}) for command in ("echo one", "exit 3", "echo three"))),
        Reply("All three ran"),
    ]
    async with fronted(server := ScriptedOllama(script)) as front:
        session = await claude(front, tmp_path / "home", "run three commands")
    results = [message for message in server.bodies()[1]["messages"] if message["role"] == "tool"]
    assert session.result["result"] == "All three ran"
    assert [message["content"].split("\n")[0] for message in results] == ["one", "Error: Exit code 3", "three"]
    assert len({message["tool_call_id"] for message in results}) == 3


@needs_cli
async def test_the_cli_never_notices_damaged_or_misplaced_calls(tmp_path: Path) -> None:
    script = [
        Reply('Let me see.\n<tool_call>\n{"name": "bash", "parameters": {"command": "echo written", "description": "x",}}\n</tool_call>'),
        Reply(calls=(ToolCall("Bash", '{"command": "echo bro'),)),
        Reply(calls=(ToolCall("run_bash", {"arguments": '{"command": "echo mended", "description": "x"}'}),)),
        Reply("Done"),
    ]
    async with fronted(server := ScriptedOllama(script)) as front:
        session = await claude(front, tmp_path / "home", "go")
    assert session.result["result"] == "Done"
    assert session.results() == ["written", "mended"]
    assert server.count() == 4
    assert len(front.asked) == 3  # the broken call was settled between the gateway and the model


def numbers(body: Mapping[str, Any]) -> Reply:
    """Print more than the window holds, summarise when asked to, carry on."""
    last = str(body["messages"][-1]["content"])
    if "<summary>" in last and "<analysis>" in last:
        return Reply(wait=0.1, text="<summary>The user wants numbers; they were printed.</summary>")
    if last.endswith("first"):
        return Reply(calls=(ToolCall("Bash", {"command": "seq 1 6000", "description": "numbers"}),))
    return Reply(wait=0.1, text="Carried on" if "second" in str(body["messages"]) else "Printed")


@needs_cli
@pytest.mark.parametrize(("context", "patience"), [(17_000, 2.0), (19_500, 2.0), (19_500, 0.01)], ids=["known", "refused", "refused-late"])
async def test_the_cli_compacts_by_itself_when_the_local_window_is_full(tmp_path: Path, context: int, patience: float) -> None:
    async with fronted(server := ScriptedOllama(numbers), context=context, patience=patience) as front:
        session = await claude(front, tmp_path / "home", "first", "tell me more", "second")
    compacted = [line for line in session.lines if line.get("subtype") == "compact_boundary"]
    assert session.code == 0, session.result
    assert 400 in front.statuses
    assert compacted
    assert session.result["result"] == "Carried on"
    assert not any(seen.truncated for seen in server.seen)


@needs_cli
async def test_the_cli_compacts_through_the_whole_gateway_and_stays_local(tmp_path: Path) -> None:
    async with ScriptedOllama(numbers) as server:
        local = Ollama(OllamaConfig((server.url,), context=19_500, patience=0.01))
        config = GatewayConfig(tmp_path, AnthropicConfig("http://127.0.0.1:9", fixed("sk-real")), local=(local,))
        async with standalone(StandaloneConfig(config, token="sk-test")) as ready:
            named = {"ANTHROPIC_CUSTOM_HEADERS": "x-claudecluster-privacy: local"}
            session = await claude(ready, tmp_path / "home", "first", "tell me more", "second", **named)
    assert session.code == 0, session.result
    assert [line for line in session.lines if line.get("subtype") == "compact_boundary"]
    assert session.result["result"] == "Carried on"
    assert session.result["modelUsage"]


@needs_cli
async def test_the_cli_goes_on_when_web_search_is_not_to_be_had(tmp_path: Path) -> None:
    script = [
        Reply(calls=(ToolCall("ToolSearch", {"query": "select:WebSearch"}),)),
        Reply(calls=(ToolCall("WebSearch", {"query": "weather"}),)),
        Reply("No search, so no weather"),
    ]
    async with fronted(server := ScriptedOllama(script)) as front:
        session = await claude(front, tmp_path / "home", "what is the weather?")
    assert session.result["result"] == "No search, so no weather"
    assert "not available" in session.results()[-1] or "unavailable" in session.results()[-1]
    assert server.count() == 3


async def test_the_official_client_streams_and_gets_whole_messages() -> None:
    calls = (ToolCall("Bash", {"command": "ls"}), ToolCall("Bash", {"command": "pwd"}))
    tools: Any = [{"name": "Bash", "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}}}]
    ask: Any = {"model": "claude-opus-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}], "tools": tools}
    server = ScriptedOllama([Reply("Hello", calls=calls), Reply("Hello", calls=calls, done_reason="length")])
    async with fronted(server) as front, AsyncAnthropic(base_url=front.url, api_key="x", max_retries=0) as client:
        async with client.messages.stream(**ask) as stream:
            streamed = await stream.get_final_message()
        whole = await client.messages.create(**ask)
        counted = await client.messages.count_tokens(model="claude-opus-5-5", messages=ask["messages"])
    assert [block.type for block in streamed.content] == ["text", "tool_use", "tool_use"]
    assert streamed.model == "qwen3-coder:30b"
    assert streamed.stop_reason == "tool_use"
    assert streamed.usage.output_tokens == 7
    assert whole.stop_reason == "max_tokens"
    assert counted.input_tokens > 0


async def test_the_official_client_waits_through_pings_and_hears_of_an_overflow() -> None:
    hold = asyncio.Event()
    async with (
        fronted(ScriptedOllama([Reply("Hello", hold=hold)]), context=2000, patience=0.01, ping=0.01) as front,
        AsyncAnthropic(base_url=front.url, api_key="x", max_retries=0) as client,
    ):
        asyncio.get_running_loop().call_later(0.1, hold.set)
        async with client.messages.stream(model="m", max_tokens=100, messages=[{"role": "user", "content": "hi"}]) as stream:
            assert await stream.get_final_text() == "Hello"
        with pytest.raises(BadRequestError, match=r"prompt is too long: \d+ tokens > 1750 maximum"):
            await client.messages.create(model="m", max_tokens=100, messages=[{"role": "user", "content": "x" * 20_000}])
