"""One client connection: HTTP/1.1 on llhttp, strict about framing, with deadlines and bounded memory.

`server/listener.py` makes one for each accepted socket. It knows nothing of models: an Application answers.
A client that goes away cancels its request at once.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast

import httptools

from claudecluster.gateway.server.message import Application, Head, Refusal, Request, refuse

REASONS = {status.value: status.phrase.encode() for status in HTTPStatus} | {529: b"Overloaded"}
BREAKS = str.maketrans("", "", "\r\n\0")


@dataclass(slots=True)
class Bounds:
    """What a client may cost. Bytes and seconds; `held` counts body bytes in memory over all connections that share this."""

    body: int = 32 * 1024 * 1024  # Anthropic's own limit for /v1/messages
    head: int = 64 * 1024
    headers: int = 128
    connections: int = 2048
    all_bodies: int = 1024 * 1024 * 1024
    head_seconds: float = 15.0
    body_seconds: float = 120.0
    idle_seconds: float = 120.0
    stalled_seconds: float = 600.0
    held: int = field(default=0)


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
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[tuple[Request, bool]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._held = 0
        self._head: Head | None = None
        self.paused: asyncio.Future[None] | None = None
        self._begin()

    # The transport's side.

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
        self._release()
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
        self.resume_writing()
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._closing:
            return
        in_head = self._in_head
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._reject(Refusal(400, "This gateway does not switch protocols."))
        except httptools.HttpParserError:
            self._reject(Refusal(400, "The request is not well-formed HTTP/1.1."))
        if in_head and self._in_head:  # a header without end never reaches `on_header`
            self._trickled += len(data)
            if self._trickled > self._bounds.head:
                self._reject(Refusal(431, "The request's headers are too large."))

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

    # The parser's side.

    def on_message_begin(self) -> None:
        """Start a request."""
        self._begin()
        self._in_head = True
        if self._task is None:
            self._deadline(self._bounds.head_seconds)

    def on_url(self, url: bytes) -> None:
        """Collect the target."""
        self._url += url
        self._check_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header."""
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1").strip()))
        self._check_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Decide whether to read the body."""
        if self._closing:
            return
        self._in_head = False
        head, problem = self._make_head()
        if problem is None and int(head.headers.get("content-length", "0")) > self._bounds.body:
            problem = self._too_large()
        if problem is None:
            problem = self._application.admit(head)
        if problem is not None:
            self._reject(problem)
            return
        self._head = head
        if self._task is None:
            self._deadline(self._bounds.body_seconds)
        if head.headers.get("expect", "").lower() == "100-continue" and self._task is None:
            self.put(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body, within bounds."""
        if self._closing:
            return
        self._held += len(body)
        self._bounds.held += len(body)
        self._size += len(body)
        if self._size > self._bounds.body:
            self._reject(self._too_large())
        elif self._bounds.held > self._bounds.all_bodies:
            self._reject(Refusal(529, "This gateway holds too many large requests at once.", retry_after=1.0))
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Have the request answered, after those before it."""
        if self._closing or self._head is None:
            return
        self._deadline(None)
        request = Request(self._head, b"".join(self._body))
        keep = self._parser.should_keep_alive() and self._parser.get_http_version() == "1.1"
        self._begin()
        self._waiting.append((request, keep))
        if len(self._waiting) > 8:
            self._reject(Refusal(400, "Too many pipelined requests."))
        elif self._task is None:
            self._task = self._loop.create_task(self._work())

    # Our own.

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

    async def _work(self) -> None:
        while self._waiting and not self._closing:
            request, keep = self._waiting.popleft()
            stream = Stream(self, bare=request.head.method == "HEAD", keep=keep)
            whole = await self._answer(request, stream)
            if not self._waiting:
                self._release()
            if not whole:
                self.cut()
            elif not keep:
                self._hang_up()
        self._task = None
        if not self._closing:
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

    def _begin(self) -> None:
        self._url = b""
        self._headers: list[tuple[str, str]] = []
        self._body: list[bytes] = []
        self._head = None
        self._head_size = 0
        self._size = 0
        self._trickled = 0
        self._in_head = False

    def _check_head(self, more: int) -> None:
        self._head_size += more
        if self._head_size > self._bounds.head:
            self._reject(Refusal(431, "The request's headers are too large."))
        elif len(self._headers) > self._bounds.headers:
            self._reject(Refusal(431, "The request has too many headers."))

    def _make_head(self) -> tuple[Head, Refusal | None]:
        headers: dict[str, str] = {}
        problem: Refusal | None = None
        for name, value in self._headers:
            if name in headers and name in {"content-length", "host", "transfer-encoding", "x-api-key", "authorization"}:
                problem = Refusal(400, f"The header {name} is given more than once.")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if "transfer-encoding" in headers and ("content-length" in headers or headers["transfer-encoding"].lower() != "chunked"):
            problem = Refusal(400, "The request's length is ambiguous.")
        if "upgrade" in headers:
            problem = Refusal(400, "This gateway does not switch protocols.")
        if not headers.get("content-length", "0").isdecimal():
            problem = Refusal(400, "The content-length is not a number.")
        path, _, query = self._url.decode("latin-1").partition("?")
        return Head(self._parser.get_method().decode("latin-1"), path, query, headers), problem

    def _too_large(self) -> Refusal:
        return Refusal(413, f"The request is larger than {self._bounds.body} bytes.", retry=False)

    def _reject(self, refusal: Refusal) -> None:
        """Answer with an error and hang up; what else the client sends is not read."""
        if self._closing:
            return
        if self._task is None and not self._waiting:
            body = refusal.body()
            stream = Stream(self, bare=False, keep=False)
            stream.start(refusal.status, refusal.all_headers().items(), length=len(body))
            with contextlib.suppress(StopIteration):
                stream.write(body).send(None)  # never waits: nothing else was written to this client
        self._hang_up()

    def _hang_up(self) -> None:
        self._closing = True
        self._release()
        self._deadline(2.0)  # closing with unread bytes would reset the connection under our answer
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def _release(self) -> None:
        self._bounds.held -= self._held
        self._held = 0

    def _deadline(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, self._late)

    def _late(self) -> None:
        self._timer = None
        if self._task is None and not self._closing and (self._in_head or self._head is not None):
            self._reject(Refusal(408, "The request did not arrive in time."))
        else:
            self.cut()
