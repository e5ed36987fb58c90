"""A sandbox back end: plain folders on this machine, each with its name in $ACME_ROOM. It isolates nothing.

Kept small to show how little a back end must do; a real one would isolate.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from claudecluster.model.errors import NotFound, Refused, SandboxLost
from claudecluster.model.place import Command, Exit, Line, SandboxSpec, Stream


class Rooms:
    """Makes rooms. They live as long as this process."""

    kind = "acme-rooms"
    overlays = False

    def __init__(self) -> None:
        self._rooms: dict[str, Room] = {}

    async def check(self) -> None:
        """Return: there is always room."""

    async def create(self, spec: SandboxSpec) -> "Room":
        """Make a room, or return it."""
        return self._rooms.setdefault(spec.name, Room(spec))

    async def attach(self, name: str) -> "Room":
        """Return a room made before."""
        if name not in self._rooms:
            raise SandboxLost(f"there is no room {name}")
        return self._rooms[name]

    async def destroy(self, name: str) -> None:
        """Empty the room."""
        if room := self._rooms.pop(name, None):
            room.empty()

    async def names(self, prefix: str) -> list[str]:
        """Return the rooms' names."""
        return [name for name in self._rooms if name.startswith(prefix)]


class Room:
    """One folder, and the processes that were started in it."""

    def __init__(self, spec: SandboxSpec) -> None:
        self._spec = spec
        self._running: set[int] = set()

    @property
    def name(self) -> str:
        """The room's name."""
        return self._spec.name

    @property
    def work(self) -> str:
        """The work folder."""
        return self._spec.work

    @property
    def socket(self) -> str:
        """The socket, as it is on the host."""
        return str(self._spec.socket or "")

    @asynccontextmanager
    async def start(self, command: Command) -> AsyncIterator["Running"]:
        """Start a command in its own process group."""
        child = await asyncio.create_subprocess_exec(
            "/usr/bin/env",  # answers 127 for a program that is not there
            *command.argv,
            cwd=self._inside(command.cwd),
            env=self._env(command.env),
            stdin=asyncio.subprocess.PIPE if command.stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=2**26,
            start_new_session=True,
        )
        self._running.add(child.pid)
        running = Running(child, command.timeout)
        try:
            yield running
        finally:
            running.kill()
            await child.wait()
            self._running.discard(child.pid)

    async def read(self, path: str) -> bytes:
        """Return a file's bytes."""
        try:
            return self._inside(path).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            raise NotFound(f"there is no file {path} in room {self.name}") from None

    async def write(self, path: str, data: bytes) -> None:
        """Write a file."""
        file = self._inside(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def empty(self) -> None:
        """End whatever runs in it."""
        for pid in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _inside(self, path: str) -> Path:
        work = Path(self._spec.work).resolve()
        found = (work / path).resolve()
        if not found.is_relative_to(work):
            raise Refused(f"{path} leads out of room {self.name}")
        return found

    def _env(self, extra: Mapping[str, str]) -> dict[str, str]:
        base = {"PATH": os.environ.get("PATH", os.defpath), "HOME": self._spec.home, "ACME_ROOM": self.name}
        return {**base, **self._spec.env, **extra}


class Running:
    """A command under way."""

    def __init__(self, child: asyncio.subprocess.Process, timeout: float | None) -> None:
        self._child, self._timed_out = child, False
        self._timer = asyncio.get_running_loop().call_later(timeout, self._late) if timeout is not None else None

    async def lines(self) -> AsyncIterator[Line]:
        """Yield its output."""
        if self._child.stdout is not None:
            async for line in self._child.stdout:
                yield Line(Stream.OUT, line.removesuffix(b"\n"))

    async def send(self, data: bytes) -> None:
        """Write to its stdin."""
        if self._child.stdin is not None:
            with contextlib.suppress(OSError):
                self._child.stdin.write(data)
                await self._child.stdin.drain()

    async def close_stdin(self) -> None:
        """Close its stdin."""
        if self._child.stdin is not None:
            self._child.stdin.close()

    async def wait(self) -> Exit:
        """Wait for its end."""
        code = await self._child.wait()
        return Exit(code if code >= 0 else 128 - code, timed_out=self._timed_out)

    def kill(self) -> None:
        """End it and all it started."""
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)

    def _late(self) -> None:
        self._timed_out = True
        self.kill()
