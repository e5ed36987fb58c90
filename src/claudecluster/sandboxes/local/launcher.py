"""Our end of the launcher process (`guest/launch.py`): starts it when first needed, gives it orders, hears how they end. Called by `process` and `none`."""

import asyncio
import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from claudecluster import guest
from claudecluster.guest import wire
from claudecluster.model.errors import ClusterError, NotFound, Refused, Unavailable

_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from claudecluster.guest.launch import main; main(int(sys.argv[2]))"
_PACKAGES = Path(guest.__file__).parents[2]
_BUSY = {errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS}
_READY_WITHIN = 30.0  # seconds; a loaded machine may take a few
_PATIENCE = 10.0


class Channel:
    """The line to one thing the launcher started. Closing it, or dying, kills that and all its descendants."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._loop = asyncio.get_running_loop()
        self._partial = b""
        self._trouble: ClusterError | None = None
        self.pid = 0  # of the outermost process, as this process sees it
        self.started: asyncio.Future[ClusterError | None] = self._loop.create_future()
        self.ended: asyncio.Future[int | None] = self._loop.create_future()  # exit code; None if the launcher vanished
        self._loop.add_reader(control.fileno(), self._hear)

    @property
    def trouble(self) -> ClusterError | None:
        """Why it could not be done, if the launcher said so."""
        return self._trouble

    def kill(self) -> None:
        """Have the whole tree killed; `ended` tells when that is done."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)

    async def close(self) -> None:
        """Kill the tree, wait until it is gone, and let go of the line."""
        self.kill()
        try:
            await asyncio.wait({self.ended}, timeout=_PATIENCE)
        finally:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()

    def _hear(self) -> None:
        try:
            data = self._control.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._control.fileno())
            self._end(None)
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._note(json.loads(line))

    def _note(self, message: Mapping[str, Any]) -> None:
        if "pid" in message:
            self.pid = message["pid"]
        if "started" in message and not self.started.done():
            self.started.set_result(None)
        if "error" in message:
            self._trouble = _error(message["error"], message["kind"])
        if "exit" in message:
            self._end(message["exit"])

    def _end(self, code: int | None) -> None:
        if not self.ended.done():
            self.ended.set_result(code)
        if not self.started.done():
            self.started.set_result(self._trouble or Unavailable(f"the sandbox ended before its command began (code {code})"))


class Launcher:
    """One launcher process; a new one takes the place of one that died. `settings` are told to it once."""

    def __init__(self, settings: Callable[[], Mapping[str, Any]], python: str = sys.executable) -> None:
        self._settings = settings
        self._python = python
        self._live: _Live | None = None
        self._launching: asyncio.Task[_Live] | None = None
        self._mounting: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def mounting(self, sandbox: str) -> asyncio.Lock:
        """Return what to hold while a sandbox's tree is put together, so that no two processes do it at once and the second joins the first."""
        return self._mounting.setdefault(sandbox, asyncio.Lock())

    async def order(self, sandbox: str, kind: str, payload: Mapping[str, Any], stdio: Sequence[int]) -> Channel:
        """Have something started with these three descriptors. Raises Unavailable if there is no launcher to be had."""
        uppers, groups = [layer["upper"] for layer in payload.get("layers", ())], list(payload.get("cgroups", ()))
        head = json.dumps({"sandbox": sandbox, "kind": kind, "uppers": uppers, "groups": groups}).encode()
        with contextlib.ExitStack() as stack:
            data = wire.anonymous(json.dumps({**payload, "kind": kind}).encode())
            stack.callback(os.close, data)
            ours, theirs = socket.socketpair()
            stack.enter_context(theirs)
            on_failure = stack.enter_context(contextlib.ExitStack())
            on_failure.enter_context(ours)
            ours.setblocking(False)
            fds = [data, *stdio, theirs.fileno()]
            try:
                await _send(await self._launcher(), head, fds)
            except ConnectionError:  # it died since; what it ran is lost, but a new one serves this order
                self.close()
                await _send(await self._launcher(), head, fds)
            channel = Channel(ours)
            on_failure.pop_all()
            return channel

    def close(self) -> None:
        """End the launcher and all it started."""
        if self._live:
            self._live.end()
        self._live = None

    async def _launcher(self) -> socket.socket:
        if self._live is None or self._live.process.poll() is not None:
            self.close()
            if self._launching is None or self._launching.done():
                self._launching = asyncio.create_task(self._launch())
            self._live = await asyncio.shield(self._launching)
        return self._live.orders

    async def _launch(self) -> "_Live":
        live = self._spawn()
        try:
            async with asyncio.timeout(_READY_WITHIN):
                answer = await asyncio.get_running_loop().sock_recv(live.orders, 65536)
            error = json.loads(answer).get("error", "") if answer else "it ended at once"
        except TimeoutError:
            error = f"no answer within {_READY_WITHIN:.0f} s"
        except BaseException:
            live.end()
            raise
        if error:
            live.end()
            raise Unavailable(f"cannot start the sandbox launcher: {error}")
        return live

    def _spawn(self) -> "_Live":
        data = wire.anonymous(json.dumps(self._settings()).encode())
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [self._python, "-I", "-S", "-c", _BOOT, str(_PACKAGES), str(theirs.fileno())]
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            socket.send_fds(ours, [b"settings"], [data])
        except OSError as error:
            ours.close()
            raise Unavailable(f"cannot start the sandbox launcher: {error.strerror}") from error
        finally:
            theirs.close()
            os.close(data)
        ours.setblocking(False)
        return _Live(process, ours)


class _Live:
    """A launcher process and our end of its order socket. It ends with this object."""

    def __init__(self, process: subprocess.Popen[bytes], orders: socket.socket) -> None:
        self.process = process
        self.orders = orders
        self.end = weakref.finalize(self, _end, process, orders)


def _end(process: subprocess.Popen[bytes], orders: socket.socket) -> None:
    orders.close()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def _send(orders: socket.socket, head: bytes, fds: Sequence[int]) -> None:
    while True:
        try:
            socket.send_fds(orders, [head], fds)
            return
        except OSError as error:
            if error.errno not in _BUSY:
                raise
            await asyncio.sleep(0.002)  # it is forking, and its queue is full


def _error(message: str, kind: str) -> ClusterError:
    match kind:
        case "refused":
            return Refused(message)
        case "not_found":
            return NotFound(message)
        case _:
            return Unavailable(message)
