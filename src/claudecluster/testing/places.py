"""A sandbox that isolates nothing: for tests of agents and checks where no real back end is at hand.

Never for agents one does not trust. Linux only: it finds what a command left running by a variable in /proc.
"""

import asyncio
import contextlib
import os
import signal
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from claudecluster.model.errors import NotFound, Refused
from claudecluster.model.place import Command, Exit, Line, Stream
from claudecluster.ports.sandbox import Process

PIECE = 64 * 1024
MARK = "CLAUDECLUSTER_OPEN_PLACE"


class OpenPlace:
    """A Sandbox in a plain folder, as this user, with the variables it is given and no others."""

    def __init__(self, work: Path, *, env: Mapping[str, str], name: str = "open", socket: str = "") -> None:
        self._work = work
        self._env = dict(env)
        self._name = name
        self._socket = socket

    @property
    def name(self) -> str:
        """The handle."""
        return self._name

    @property
    def work(self) -> str:
        """The work folder."""
        return str(self._work)

    @property
    def socket(self) -> str:
        """The socket's path, if it was given one."""
        return self._socket

    def start(self, command: Command) -> AbstractAsyncContextManager[Process]:
        """Start a command in its own process group, which ends with the context."""
        return self._start(command)

    async def read(self, path: str) -> bytes:
        """Return a file's bytes. Raises NotFound, Refused."""
        try:
            return self._inside(path).read_bytes()
        except FileNotFoundError as error:
            raise NotFound(f"no file {path}") from error

    async def write(self, path: str, data: bytes) -> None:
        """Create or replace a file. Raises Refused."""
        target = self._inside(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def _inside(self, path: str) -> Path:
        target = (self._work / path).resolve()
        if not target.is_relative_to(self._work.resolve()):
            raise Refused(f"{path} leads out of the sandbox")
        return target

    @asynccontextmanager
    async def _start(self, command: Command) -> AsyncIterator[Process]:
        mark = f"{MARK}={uuid.uuid4().hex}"
        env = {**self._env, **command.env, **dict([mark.split("=")])}
        cwd = self._work / command.cwd
        stdin = asyncio.subprocess.PIPE if command.stdin else asyncio.subprocess.DEVNULL
        pipe = asyncio.subprocess.PIPE
        try:
            child = await asyncio.create_subprocess_exec(
                *command.argv, cwd=cwd, env=env, stdin=stdin, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except FileNotFoundError:
            argv = ("/bin/sh", "-c", 'echo "$0: not found" >&2; exit 127', command.argv[0])
            child = await asyncio.create_subprocess_exec(*argv, env=env, stdin=stdin, stdout=pipe, stderr=pipe, start_new_session=True)
        process = _Child(child, command.timeout, mark)
        try:
            yield process
        finally:
            await process.kill()


class _Child:
    def __init__(self, child: asyncio.subprocess.Process, timeout: float | None, mark: str) -> None:
        self._child = child
        self._mark = mark.encode()
        self._timed_out = False
        self._timer = asyncio.get_running_loop().call_later(timeout, self._expire) if timeout is not None else None

    async def lines(self) -> AsyncIterator[Line]:
        """Yield both streams' lines."""
        queue: asyncio.Queue[Line | None] = asyncio.Queue()
        readers = [asyncio.ensure_future(self._pump(stream, queue)) for stream in Stream]
        try:
            open_streams = len(readers)
            while open_streams:
                line = await queue.get()
                if line is None:
                    open_streams -= 1
                else:
                    yield line
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def send(self, data: bytes) -> None:
        """Write to stdin."""
        if self._child.stdin is not None:
            with contextlib.suppress(OSError):
                self._child.stdin.write(data)
                await self._child.stdin.drain()

    async def close_stdin(self) -> None:
        """Give it end of file."""
        if self._child.stdin is not None:
            self._child.stdin.close()

    async def wait(self) -> Exit:
        """Wait for its end."""
        code = await self._child.wait()
        return Exit(code if code >= 0 else 128 - code, timed_out=self._timed_out)

    async def kill(self) -> None:
        """Kill its process group and reap it."""
        if self._timer is not None:
            self._timer.cancel()
        self._signal()
        await self._child.wait()
        for stream in (self._child.stdout, self._child.stderr):
            if stream is not None:
                stream.feed_eof()
        getattr(self._child, "_transport").close()  # noqa: B009 - asyncio closes pipes late, which tests see as a leak

    async def _pump(self, stream: Stream, queue: asyncio.Queue[Line | None]) -> None:
        reader = self._child.stdout if stream is Stream.OUT else self._child.stderr
        rest = b""
        while reader is not None and (piece := await reader.read(PIECE)):
            *whole, rest = (rest + piece).split(b"\n")
            for data in whole:
                queue.put_nowait(Line(stream, data))
        if rest:
            queue.put_nowait(Line(stream, rest))
        queue.put_nowait(None)

    def _expire(self) -> None:
        self._timed_out = True
        self._signal()

    def _signal(self) -> None:
        """Kill everything that carries the mark: what it started may have left its process group."""
        while True:
            found = [pid for pid in _pids() if self._mark in _environ(pid)]
            for pid in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if not found:
                return


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208 - names are all it needs


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
