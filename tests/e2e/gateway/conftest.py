"""The gateway as a process of its own between two scripted servers, and the real Claude Code as its client.

`TEST_CLAUDE_CLI=/path/to/claude` puts another Claude Code in the place of the one that comes with claude-agent-sdk.
"""

import asyncio
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import claude_agent_sdk
import pytest

from claudecluster.testing.anthropic import ScriptedAnthropic
from claudecluster.testing.ollama import ScriptedOllama
from claudecluster.testing.scenario import Scenario

BUNDLED = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
KEY = "sk-ant-real-key-nobody-may-see"
TOKEN = "test-token"


@pytest.fixture(scope="session")
def claude_cli() -> Path:
    """Return the Claude Code under test."""
    found = Path(os.environ.get("TEST_CLAUDE_CLI") or BUNDLED)
    if not found.exists():
        pytest.skip("this wheel of claude-agent-sdk carries no CLI, and TEST_CLAUDE_CLI names none")
    return found


@pytest.fixture(scope="session")
def claude_version(claude_cli: Path) -> tuple[int, ...]:
    """Return its version."""
    said = subprocess.run([claude_cli, "--version"], check=True, capture_output=True, text=True, timeout=60).stdout
    return tuple(int(part) for part in said.split()[0].split("."))


@dataclass
class Told:
    """What the CLI printed and how it ended."""

    code: int
    lines: list[dict[str, Any]]
    ran: list[str]

    @property
    def result(self) -> dict[str, Any]:
        return self.lines[-1]

    def having(self, subtype: str) -> list[dict[str, Any]]:
        """Return the system lines of one kind."""
        return [line for line in self.lines if line.get("subtype") == subtype and line["type"] == "system"]


@dataclass
class House:
    """A gateway process between two scripted servers."""

    anthropic: ScriptedAnthropic
    ollama: ScriptedOllama
    url: str
    folder: Path
    process: subprocess.Popen[str]
    cli: Path
    home: Path

    async def claude(
        self,
        *more: str,
        prompt: str = "do it",
        then: tuple[str, ...] = (),
        token: str = TOKEN,
        headers: str = "",
        env: Mapping[str, str] | None = None,
        patience: float = 90,
    ) -> Told:
        """Run one session; what is in `then` follows as further turns."""
        home, work = self.folder / "user", self.folder / "work"
        home.mkdir(exist_ok=True)
        work.mkdir(exist_ok=True)
        flow = ("--input-format", "stream-json") if then else (prompt,)
        argv = ("-p", *flow, "--output-format", "stream-json", "--verbose", "--dangerously-skip-permissions", *more)
        own = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(home),
            "IS_SANDBOX": "1",
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_API_KEY": token,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            **({"ANTHROPIC_CUSTOM_HEADERS": headers} if headers else {}),
            **(env or {}),
        }
        async with asyncio.timeout(patience):
            lines = await converse((str(self.cli), *argv), (prompt, *then) if then else (), work, own)
        path = work / "ran"
        return Told(lines.pop(), lines, path.read_text().split() if path.exists() else [])

    async def page(self, path: str) -> Any:
        """Return a page of the gateway."""
        return json.loads(await asyncio.to_thread(fetch, self.url + path))


async def converse(argv: tuple[str, ...], prompts: tuple[str, ...], work: Path, env: Mapping[str, str]) -> list[Any]:
    """Run the CLI, each prompt after the turn before it has ended. Returns what it printed, and last its exit code."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=work,
        env=env,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=16 * 1024 * 1024,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    lines: list[Any] = []
    try:
        for text in prompts:
            process.stdin.write(json.dumps({"type": "user", "message": {"role": "user", "content": text}}).encode() + b"\n")
            while line := await process.stdout.readline():
                lines.append(json.loads(line))
                if lines[-1]["type"] == "result":
                    break
        process.stdin.close()
        lines += [json.loads(line) async for line in process.stdout]
        return [*lines, await process.wait()]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as response:
        body: bytes = response.read()
        return body


Housed = Callable[..., AbstractAsyncContextManager[House]]


@pytest.fixture
def housed(cli: Any, claude_cli: Path, tmp_path: Path) -> Housed:
    """Return a maker of houses, each made of a scenario and a local model, which `alone` leaves out."""

    @asynccontextmanager
    async def house(scenario: Scenario, local: ScriptedOllama, *, alone: bool = False, **env: str) -> AsyncIterator[House]:
        async with ScriptedAnthropic(scenario, key=KEY) as anthropic, local as ollama:
            given = {"ANTHROPIC_BASE_URL": anthropic.url, "ANTHROPIC_API_KEY": KEY, "CLAUDECLUSTER_GATEWAY_TOKEN": TOKEN, **env}
            process = cli.start("gateway", env=given if alone else {"OLLAMA_BASE_URL": ollama.url, **given})
            try:
                assert process.stdout is not None
                line = await asyncio.to_thread(process.stdout.readline)
                assert line, process.stderr.read()
                ready = json.loads(line)
                assert set(ready) == {"url", "token"}
                assert ready["token"] == TOKEN
                yield House(anthropic, ollama, ready["url"], tmp_path, process, claude_cli, tmp_path / "state")
            finally:
                process.send_signal(signal.SIGTERM)
                out, err = await asyncio.to_thread(process.communicate, None, 20)
                assert process.returncode == 0, err
                assert out == "", "one line of JSON and no more"
                assert KEY not in err
                assert "Traceback" not in err

    return house
