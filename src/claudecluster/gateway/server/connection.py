"""One client connection: requests read, answered one after another, with deadlines; a client that goes away cancels its request at once.

`server/listener.py` makes one for each accepted socket, `server/intake.py` reads for it. It knows nothing of models: an Application answers.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable
from http import HTTPStatus
from typing import cast

from claudecluster.gateway.server.intake import Bounds, Intake, Phase
from claudecluster.gateway.server.message import Application, Refusal, Request, refuse

REASONS = {status.value: status.phrase.encode() for status in HTTPStatus} | {529: b"Overloaded"}
BREAKS = str.maketrans("", "", "\r\n\0")
AHEAD = 8  # requests a client may send before their turn
LINGER = 2.0  # seconds: closing with unread bytes would reset the connection under our answer


class Stream:
    """The answer to one request, written to its connection."""

    __slots__ = ("_bare", "_chunked", "_connection", "_ended", "_head", "keep", "started")

    def __init__(self, connection: "Connection", *, bare: bool, keep: bool) -> None:
        self._connection = connection
        self._bare = bare  # HEAD: headers only
        self._chunked = False
        self._ended = False
        self._head = b""
        self.keep = keep
        self.started = False

    def start(self, status: int, headers: Iterable[tuple[str, str]], *, length: int | None = None) -> None:
        """Send the status and headers, with the first bytes of the body. Without `length`, the body is chunked."""
        self.started = True
        lines = [b"HTTP/1.1 %d %s" % (status, REASONS.get(status, b"Status"))]
        lines += [f"{name}: {value.translate(BREAKS)}".encode("latin-1", "replace") for name, value in headers]
        if length is not None:
            lines.append(b"content-length: %d" % length)
        elif self.keep:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked")
        if not self.keep:
            lines.append(b"connection: close")
        self._head = b"\r\n".join(lines) + b"\r\n\r\n"

    async def write(self, data: bytes) -> None:
        """Send some of the body, waiting while the client does not read."""
        if data and not self._ended:
            self._connection.put(self._framed(data))
            if self._connection.paused is not None:
                await self._connection.paused

    async def end(self, data: bytes = b"") -> None:
        """Finish the answer, with the last of its body. More than once is fine."""
        if self._ended:
            return
        last = self._framed(data) + (b"0\r\n\r\n" if self._chunked and not self._bare else b"")
        self._ended = True
        if last:
            self._connection.put(last)

    def _framed(self, data: bytes) -> bytes:
        head, self._head = self._head, b""
        if self._bare or not data:
            return head
        return head + b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else head + data


class Connection(asyncio.Protocol):
    """Reads requests from one socket and has them answered one after another."""

    def __init__(self, application: Application, bounds: Bounds, crowd: "set[Connection]") -> None:
        self._application = application
        self._bounds = bounds
        self._crowd = crowd
        self._loop = asyncio.get_running_loop()
        self._intake = Intake(bounds, application.admit, self._take)
        self._phase: Phase = "idle"
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[tuple[Request, bool]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self.paused: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a new client, if there is room."""
        self._transport = cast("asyncio.Transport", transport)
        self._crowd.add(self)
        if len(self._crowd) > self._bounds.connections:
            self._reject(Refusal(529, "Too many connections to this gateway at once."))
            return
        self._deadline(self._bounds.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the transport's signature
        """Give up what the client was waiting for."""
        self._closing = True
        self._crowd.discard(self)
        self._deadline(None)
        self._intake.release()
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
        self.resume_writing()
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        if self._closing:
            return
        refusal = self._intake.feed(data)
        if refusal is not None:
            self._reject(refusal)
            return
        phase, before = self._intake.phase, self._phase
        self._phase = phase
        if self._task is None and phase != before:
            self._deadline({"idle": None, "head": self._bounds.head_seconds, "body": self._bounds.body_seconds}[phase])
            if phase == "body" and self._intake.continues:
                self.put(b"HTTP/1.1 100 Continue\r\n\r\n")

    def pause_writing(self) -> None:
        """Remember that the client reads more slowly than we write."""
        if self.paused is None:
            self.paused = self._loop.create_future()
            self._deadline(self._bounds.stalled_seconds)

    def resume_writing(self) -> None:
        """Go on."""
        if self.paused is not None:
            if not self.paused.done():
                self.paused.set_result(None)
            self.paused = None
            self._deadline(None)

    def put(self, data: bytes) -> None:
        """Write to the client, if it is still there."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def cut(self) -> asyncio.Task[None] | None:
        """Drop the client now. Returns the work that is being given up, if any."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()
        return self._task

    def _take(self, request: Request, keep: bool) -> None:
        self._waiting.append((request, keep))
        if len(self._waiting) > AHEAD:
            self._reject(Refusal(400, "Too many pipelined requests."))
        elif self._task is None:
            self._deadline(None)
            self._task = self._loop.create_task(self._work())

    async def _work(self) -> None:
        while self._waiting and not self._closing:
            request, keep = self._waiting.popleft()
            stream = Stream(self, bare=request.head.method == "HEAD", keep=keep)
            whole = await self._answer(request, stream)
            if not self._waiting and self._intake.phase == "idle":
                self._intake.release()
            if not whole:
                self.cut()
            elif not keep:
                self._hang_up()
        self._task = None
        if not self._closing:
            self._phase = self._intake.phase
            self._deadline(self._bounds.idle_seconds)

    async def _answer(self, request: Request, stream: Stream) -> bool:
        """Return whether the client got a whole answer."""
        try:
            await self._application.serve(request, stream)
            if not stream.started:
                await refuse(stream, Refusal(500, "The gateway gave no answer."))
            await stream.end()
        except Exception as error:  # noqa: BLE001 - whatever broke, the client is told and the next one is served
            if not stream.started:
                with contextlib.suppress(OSError):
                    await refuse(stream, Refusal(500, f"The gateway failed: {type(error).__name__}."))
            self._loop.call_exception_handler({"message": "a gateway request failed", "exception": error})
            return False
        return True

    def _reject(self, refusal: Refusal) -> None:
        """Answer with an error and hang up; what else the client sends is not read."""
        if self._closing:
            return
        if self._task is None and not self._waiting:
            body = refusal.body()
            stream = Stream(self, bare=False, keep=False)
            stream.start(refusal.status, refusal.all_headers().items(), length=len(body))
            with contextlib.suppress(StopIteration):
                stream.end(body).send(None)  # never waits
        self._hang_up()

    def _hang_up(self) -> None:
        self._closing = True
        self._intake.release()
        self._deadline(LINGER)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def _deadline(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, self._late)

    def _late(self) -> None:
        self._timer = None
        if self._task is None and not self._closing and self._intake.phase != "idle":
            self._reject(Refusal(408, "The request did not arrive in time."))
        else:
            self.cut()
