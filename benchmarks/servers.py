"""Servers that `gateway.py` measures, each as a process of its own: ours, and other people's where they are installed.

Other people's are started as their own documents say for passing Anthropic's API through to Anthropic, with logging off and one worker:
LiteLLM's proxy (docs.litellm.ai, "/v1/messages") and claude-code-router (its README, transformer `Anthropic`).
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp

PATIENCE = 120.0  # seconds; LiteLLM takes half a minute to start


@dataclass
class Child:
    """A server in its own process."""

    process: asyncio.subprocess.Process
    url: str

    def memory(self) -> int:
        """Return its resident bytes, with those of the processes it has started."""
        return sum(_resident(pid) for pid in _family(self.process.pid))

    async def stop(self) -> None:
        """End it and what it has started."""
        for pid in reversed(_family(self.process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self.process.wait()


async def start(*argv: str) -> Child:
    """Start one of our own servers, which says where it listens."""
    process = await asyncio.create_subprocess_exec(sys.executable, *argv, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    return Child(process, json.loads(await process.stdout.readline())["url"])


async def litellm(program: Path, target: str, folder: Path, token: str) -> Child:
    """Start LiteLLM's proxy in front of that target."""
    config = {
        "model_list": [{"model_name": "*", "litellm_params": {"model": "anthropic/*", "api_base": target, "api_key": "sk-real"}}],
        "litellm_settings": {"telemetry": False},
        "general_settings": {"master_key": token},
    }
    (folder / "litellm.yaml").write_text(json.dumps(config))  # YAML reads JSON
    port = _free()
    env = {"LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    argv = (str(program), "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port))
    return await _foreign(argv, folder, env, f"http://127.0.0.1:{port}", "/health/liveliness")


async def router(program: Path, target: str, folder: Path, token: str) -> Child:
    """Start claude-code-router in front of that target."""
    port = _free()
    provider = {"name": "anthropic", "api_base_url": f"{target}/v1/messages", "api_key": "sk-real", "models": ["claude-opus-4-8"]}
    config = {
        "HOST": "127.0.0.1",
        "PORT": port,
        "APIKEY": token,
        "LOG": False,
        "NON_INTERACTIVE_MODE": True,
        "Providers": [{**provider, "transformer": {"use": ["Anthropic"]}}],
        "Router": {"default": "anthropic,claude-opus-4-8"},
    }
    (folder / ".claude-code-router").mkdir()
    (folder / ".claude-code-router" / "config.json").write_text(json.dumps(config))
    return await _foreign((str(program), "start"), folder, {}, f"http://127.0.0.1:{port}", "/")


PEERS = {"litellm": ("litellm", litellm), "router": ("ccr", router)}


def found(name: str, given: Path | None) -> Path | None:
    """Return the program of a peer: what was given, else what is on PATH."""
    if given is not None:
        return given.absolute()
    seen = shutil.which(PEERS[name][0])
    return Path(seen) if seen else None


async def _foreign(argv: tuple[str, ...], folder: Path, env: dict[str, str], url: str, path: str) -> Child:
    own = {"PATH": os.environ["PATH"], "HOME": str(folder), **env}
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*argv, env=own, cwd=folder, stdin=quiet, stdout=quiet, stderr=quiet)
    child, end = Child(process, url), time.monotonic() + PATIENCE
    async with aiohttp.ClientSession() as session:
        while True:
            with suppress(aiohttp.ClientError):
                async with session.get(url + path) as reply:
                    await reply.read()
                    return child
            if process.returncode is not None or time.monotonic() > end:
                await child.stop()
                raise SystemExit(f"{argv[0]} does not serve")
            await asyncio.sleep(0.2)


def _free() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _family(pid: int) -> list[int]:
    """Return a process and all it has started, itself first."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(descendant for child in children for descendant in _family(int(child)))]


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
