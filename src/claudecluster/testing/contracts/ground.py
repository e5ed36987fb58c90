"""What the sandbox contract stands on: a provider to try, and how to run, wait and look. For suites and for tests of back ends."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from claudecluster.model.errors import ClusterError, NotFound
from claudecluster.model.place import Bind, Command, Exit, Layer, SandboxSpec, Stream
from claudecluster.ports.sandbox import Process, Sandbox, SandboxProvider

PATIENCE = 60.0  # seconds; a loaded machine is no broken sandbox
NAME = "run-1/task/1"
# a heart that beats in the background, out of reach of a process group's or session's end
HEART = "setsid sh -c '(while :; do date +%s%N > beat; sleep 0.02; done) & ' >/dev/null 2>&1 </dev/null &"


@dataclass(frozen=True, slots=True)
class Ground:
    """A provider, and how to describe a sandbox to it."""

    provider: SandboxProvider
    spec: Callable[[str], SandboxSpec]

    async def make(self, name: str = NAME) -> Sandbox:
        """Make a sandbox."""
        return await self.provider.create(self.spec(name))


def local_spec(provider: SandboxProvider, folder: Path, name: str) -> SandboxSpec:
    """Describe a sandbox whose folders lie below `folder` on this machine, layered where the provider can."""
    base = folder / name.replace("/", "-")
    owner = getattr(provider, "owner", None)
    for part in ("lower", "upper", "scratch", "home"):
        (base / part).mkdir(parents=True, exist_ok=True)
        if owner:
            os.chown(base / part, *owner)
    home = Bind(base / "home", "/home/agent", writable=True)
    if not provider.overlays:
        return SandboxSpec(name, "/repo", "/home/agent", binds=(Bind(base / "upper", "/repo", writable=True), home))
    layer = Layer((base / "lower",), base / "upper", base / "scratch", "/repo")
    return SandboxSpec(name, "/repo", "/home/agent", layers=(layer,), binds=(home,))


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended and what it said."""

    exit: Exit
    out: list[bytes]
    err: list[bytes]


async def run(place: Sandbox, *argv: str, cwd: str = ".", env: Mapping[str, str] | None = None, timeout: float | None = None) -> Done:
    """Run a command to its end."""
    command = Command(argv, env=env or {}, cwd=cwd, timeout=timeout)
    async with asyncio.timeout(PATIENCE), place.start(command) as process:
        return await collected(process)


async def collected(process: Process) -> Done:
    """Hear a process out."""
    said: dict[Stream, list[bytes]] = {Stream.OUT: [], Stream.ERR: []}
    async for line in process.lines():
        said[line.stream].append(line.data)
    return Done(await process.wait(), said[Stream.OUT], said[Stream.ERR])


async def raises(expected: type[ClusterError], asked: Awaitable[object]) -> None:
    """Assert that it raises this."""
    try:
        found = await asked
    except expected:
        return
    raise AssertionError(f"{expected.__name__} was expected, not {found!r}")


async def lively(place: Sandbox) -> None:
    """Wait until the heart beats."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            if await place.read("beat"):
                return
        except NotFound:
            await asyncio.sleep(0.01)
        assert time.monotonic() < end, "the heart never beat"


async def still(place: Sandbox) -> None:
    """Assert that the heart has stopped: ten beats' time without one."""
    beat = await place.read("beat")
    for _ in range(10):
        await asyncio.sleep(0.02)
        assert await place.read("beat") == beat, "something lives on"
