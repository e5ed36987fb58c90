"""The command `claudecluster gateway` in front of a scripted Anthropic, spoken to over HTTP and over bare sockets."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from claudecluster.testing.anthropic import ScriptedAnthropic
from claudecluster.testing.scenario import Scenario

KEY = "sk-ant-real-key-nobody-may-see"
OWNER = "the-owners-token"
HELLO = Scenario.model_validate({"sessions": [{"match": "hello", "turns": [{"text": "Hello from Anthropic."}]}]})


@dataclass
class Process:
    """One gateway. `host` and `port` are where it listens."""

    process: subprocess.Popen[str]
    url: str
    host: str
    port: int

    @property
    def memory(self) -> int:
        """What it holds in memory now, in bytes (proc(5): statm)."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    async def ask(
        self, token: str = OWNER, *, model: str = "claude-sonnet-5-5", **headers: str
    ) -> tuple[int, dict[str, Any], Mapping[str, str]]:
        """Ask for one message. Returns status, document and headers."""
        body = {"model": model, "max_tokens": 10, "messages": [{"role": "user", "content": "hello"}]}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session,
            session.post(
                f"{self.url}/v1/messages", json=body, headers={"x-api-key": token, "anthropic-version": "2023-06-01", **headers}
            ) as reply,
        ):
            return reply.status, await reply.json(), reply.headers

    async def page(self, path: str, token: str = "") -> tuple[int, Any]:
        """Return the status and document of a page."""
        headers = {"x-api-key": token} if token else {}
        async with aiohttp.ClientSession() as session, session.get(self.url + path, headers=headers) as reply:
            return reply.status, await reply.json()

    async def raw(self, *pieces: bytes, wait: float = 15) -> bytes:
        """Send bytes, piece by piece, and return what comes back until the connection ends."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
            return await asyncio.wait_for(_all(reader), wait)
        finally:
            writer.transport.abort()

    async def say(self, words: str) -> str:
        """Wait for a line on stderr that has these words."""
        assert self.process.stderr is not None
        lines = self.process.stderr
        return await asyncio.to_thread(lambda: next(line for line in lines if words in line))

    async def kill(self) -> None:
        """Kill it as with kill -9."""
        self.process.kill()
        await asyncio.to_thread(self.process.wait, 20)


async def _all(reader: asyncio.StreamReader) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65536):
            got += piece
    return got


Serving = Callable[..., AbstractAsyncContextManager[Process]]


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedAnthropic]:
    async with ScriptedAnthropic(HELLO, key=KEY) as server:
        yield server


@pytest.fixture
def serving(cli: Any) -> Serving:
    """Return a maker of gateways: `serving(upstream.url)`, with more of the environment as keywords."""

    @asynccontextmanager
    async def serve(url: str, *options: str, **env: str) -> AsyncIterator[Process]:
        given = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": KEY, "CLAUDECLUSTER_GATEWAY_TOKEN": OWNER, **env}
        process = cli.start("gateway", *options, env=given)
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        assert line, process.stderr.read()
        where = json.loads(line)["url"]
        host, _, port = where.removeprefix("http://").partition(":")
        try:
            yield Process(process, where, host, int(port))
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                _, err = await asyncio.to_thread(process.communicate, None, 20)
                assert process.returncode == 0, err
                assert KEY not in err
                assert "Traceback" not in err

    return serve


def slow_socket(process: Process) -> socket.socket:
    """Return a connection nobody has said anything on."""
    return socket.create_connection((process.host, process.port), timeout=30)
