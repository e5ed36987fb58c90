"""A command started through the launcher, as the port `Process`. Called by `process` and `none`."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

from claudecluster.guest import wire
from claudecluster.kit.clock import Clock
from claudecluster.model.errors import SandboxLost, Unavailable
from claudecluster.model.place import Command, Exit, Line
from claudecluster.sandboxes.local.launcher import Channel, Launcher
from claudecluster.sandboxes.local.output import Output


class Spawned:
    """A running command."""

    def __init__(self, channel: Channel, stdin: int, output: Output) -> None:
        self._channel = channel
        self._stdin = stdin
        self._output = output
        self._writing = asyncio.Lock()
        self._timed_out = False
        self._blocked: asyncio.Future[None] | None = None

    @property
    def pid(self) -> int:
        """The outermost process of its tree, as this process sees it."""
        return self._channel.pid

    def lines(self) -> AsyncIterator[Line]:
        """Yield output as it comes, both streams, until both close. One reader only."""
        return self._output.lines()

    async def send(self, data: bytes) -> None:
        """Write to its stdin. A closed pipe is not an error: the exit tells."""
        async with self._writing:
            view = memoryview(data)
            while view and self._stdin >= 0:
                try:
                    view = view[os.write(self._stdin, view) :]
                except BlockingIOError:
                    await self._writable()
                except OSError:
                    return

    async def close_stdin(self) -> None:
        """Give it end of file."""
        async with self._writing:
            self._let_go_of_stdin()

    async def wait(self) -> Exit:
        """Wait for the main process to end. Without a reader, only its newest few megabytes of output are kept meanwhile. Raises SandboxLost."""
        self._output.drop_what_nobody_reads()
        await asyncio.wait({self._channel.ended})
        code = self._channel.ended.result()
        if code is None:
            raise SandboxLost("the sandbox's launcher ended under its process", hint="make a new attempt")
        return Exit(code, timed_out=self._timed_out)

    async def stop_after(self, seconds: float, clock: Clock) -> None:
        """Kill the tree when the time is up; the exit then says so."""
        await clock.sleep(seconds)
        if not self._channel.ended.done():
            self._timed_out = True
            self._channel.kill()

    def unread(self) -> str:
        """Return what it wrote before it ended, for an error message."""
        return self._output.tail()

    def close(self) -> None:
        """Let go of the pipes."""
        self._let_go_of_stdin()
        self._output.close()

    async def _writable(self) -> None:
        loop, fd = asyncio.get_running_loop(), self._stdin
        self._blocked = ready = loop.create_future()
        loop.add_writer(fd, _resolve, ready)
        try:
            await ready
        finally:
            self._blocked = None
            if self._stdin >= 0:
                loop.remove_writer(fd)

    def _let_go_of_stdin(self) -> None:
        if self._stdin >= 0:
            if self._blocked:
                asyncio.get_running_loop().remove_writer(self._stdin)
                _resolve(self._blocked)
            os.close(self._stdin)
            self._stdin = -1


@contextlib.asynccontextmanager
async def spawned(launcher: Launcher, sandbox: str, order: Mapping[str, Any], command: Command, clock: Clock) -> AsyncIterator[Spawned]:
    """Start a command and kill its whole tree at the end, whatever happens in between. Raises Unavailable, Refused."""
    async with contextlib.AsyncExitStack() as stack:
        async with launcher.mounting(sandbox):
            try:
                channel, process = await _begun(launcher, sandbox, order, stack, stdin=command.stdin)
                await asyncio.wait({channel.started})
            except OSError as error:  # of descriptors there is an end
                raise Unavailable(f"cannot start a process: {error.strerror}") from error
            except asyncio.CancelledError:
                await stack.aclose()  # before another may begin
                raise
        if trouble := channel.started.result():
            said = process.unread()
            raise Unavailable(f"{trouble}: {said}") if said else trouble
        if command.timeout is not None:
            timer = asyncio.create_task(process.stop_after(command.timeout, clock))
            stack.callback(timer.cancel)
        stack.callback(channel.kill)
        yield process


async def _begun(
    launcher: Launcher, sandbox: str, order: Mapping[str, Any], stack: contextlib.AsyncExitStack, *, stdin: bool
) -> tuple[Channel, Spawned]:
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        out, out_end = _pipe(ours, theirs)
        err, err_end = _pipe(ours, theirs)
        if stdin:
            end, in_end = _pipe(theirs, ours)
            os.set_blocking(in_end, False)
        else:
            end, in_end = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), -1
            theirs.callback(os.close, end)
        channel = await launcher.order(sandbox, "run", order, (end, out_end, err_end))
        stack.push_async_callback(channel.close)
        process = Spawned(channel, in_end, Output(out, err))
        stack.callback(process.close)
        ours.pop_all()
        return channel, process


async def file_order(launcher: Launcher, sandbox: str, order: Mapping[str, Any], data: bytes | None) -> bytes:
    """Read a file (`data` is None) or write it, in a short-lived process inside the sandbox's tree. Raises NotFound, Refused, Unavailable, SandboxLost."""
    with contextlib.ExitStack() as stack:
        into, source = wire.anonymous(b""), wire.anonymous(data or b"")
        stack.callback(os.close, into)
        stack.callback(os.close, source)
        async with launcher.mounting(sandbox):
            channel = await launcher.order(sandbox, "read" if data is None else "write", order, (source, into, into))
            try:
                await asyncio.wait({channel.ended})
            finally:
                await channel.close()
        if channel.trouble:
            raise channel.trouble
        if channel.ended.result() != 0:
            raise SandboxLost("the sandbox's launcher ended while it touched a file", hint="make a new attempt")
        return wire.contents(into)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _pipe(reading: contextlib.ExitStack, writing: contextlib.ExitStack) -> tuple[int, int]:
    """Make a pipe whose ends belong to these two."""
    read, write = os.pipe2(os.O_CLOEXEC)
    reading.callback(os.close, read)
    writing.callback(os.close, write)
    return read, write
