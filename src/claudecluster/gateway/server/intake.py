"""Requests cut out of a client's bytes, strictly and within bounds. `server/connection.py` feeds it; it writes nothing and waits for nothing.

Framing is llhttp's; what it leaves open (two lengths, a length beside chunks, heads without end) is refused here, so that what we
take for one request nobody behind us takes for two.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import httptools

from claudecluster.gateway.server.message import Head, Refusal, Request

ONCE = frozenset({"content-length", "host", "transfer-encoding", "x-api-key", "authorization"})
Phase = Literal["idle", "head", "body"]


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


class Intake:
    """Reads one client. `admit` judges a head before its body is read, `take` gets whole requests and whether the client stays."""

    def __init__(self, bounds: Bounds, admit: Callable[[Head], Refusal | None], take: Callable[[Request, bool], None]) -> None:
        self._bounds = bounds
        self._admit = admit
        self._take = take
        self._parser = httptools.HttpRequestParser(self)
        self._held = 0
        self._refusal: Refusal | None = None
        self._head: Head | None = None
        self.phase: Phase = "idle"
        self.continues = False  # the client waits for our consent to send its body
        self._begin()

    def feed(self, data: bytes) -> Refusal | None:
        """Read on. A Refusal means that nothing more can be read from this client."""
        before = (self.phase, self._size)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(Refusal(400, "This gateway does not switch protocols."))
        except httptools.HttpParserError:
            self._refuse(Refusal(400, "The request is not well-formed HTTP/1.1."))
        if self.phase != "idle" and (self.phase, self._size) == before:  # a header or trailer without end never reaches `on_header`
            self._trickled += len(data)
            if self._trickled > self._bounds.head:
                self._refuse(Refusal(431, "The request's headers are too large."))
        return self._refusal

    def release(self) -> None:
        """Forget the bodies that were handed over."""
        self._bounds.held -= self._held
        self._held = 0

    # llhttp's side.

    def on_message_begin(self) -> None:
        """Start a request."""
        self._begin()
        self.phase = "head"

    def on_url(self, url: bytes) -> None:
        """Collect the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header."""
        if self.phase == "body":
            return  # trailers: nothing of ours reads them
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1").strip()))
        self._head_size += len(name) + len(value)

    def on_headers_complete(self) -> None:
        """Decide whether to read the body."""
        if self._refusal is not None:
            return
        self.phase = "body"
        self._trickled = 0
        head, problem = self._make_head()
        if problem is None and int(head.headers.get("content-length", "0")) > self._bounds.body:
            problem = self._too_large()
        if problem is None:
            problem = self._admit(head)
        if problem is not None:
            self._refuse(problem)
            return
        self._head = head
        self.continues = head.headers.get("expect", "").lower() == "100-continue"

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body, within bounds."""
        if self._refusal is not None:
            return
        self._held += len(body)
        self._bounds.held += len(body)
        self._size += len(body)
        self._trickled = 0
        if self._size > self._bounds.body:
            self._refuse(self._too_large())
        elif self._bounds.held > self._bounds.all_bodies:
            self._refuse(Refusal(529, "This gateway holds too many large requests at once.", retry_after=1.0))
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Hand the request over."""
        if self._refusal is not None or self._head is None:
            return
        request = Request(self._head, b"".join(self._body))
        self._begin()
        self._take(request, self._parser.should_keep_alive() and self._parser.get_http_version() == "1.1")

    # Our own.

    def _begin(self) -> None:
        self._url = b""
        self._headers: list[tuple[str, str]] = []
        self._body: list[bytes] = []
        self._head = None
        self._head_size = self._trickled = self._size = 0
        self.continues = False
        self.phase = "idle"

    def _refuse(self, refusal: Refusal) -> None:
        self._refusal = self._refusal or refusal
        self._body = []
        self.release()

    def _make_head(self) -> tuple[Head, Refusal | None]:
        headers: dict[str, str] = {}
        problem: Refusal | None = None
        for name, value in self._headers:
            if name in headers and name in ONCE:
                problem = Refusal(400, f"The header {name} is given more than once.")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if "transfer-encoding" in headers and ("content-length" in headers or headers["transfer-encoding"].lower() != "chunked"):
            problem = Refusal(400, "The request's length is ambiguous.")
        if "upgrade" in headers:
            problem = Refusal(400, "This gateway does not switch protocols.")
        if not headers.get("content-length", "0").isdecimal():
            problem = Refusal(400, "The content-length is not a number.")
        if not self._url.isascii():
            problem = Refusal(400, "The target holds bytes that no URL has.")
        if self._head_size + len(self._url) > self._bounds.head or len(self._headers) > self._bounds.headers:
            problem = Refusal(431, "The request's headers are too large or too many.")
        path, _, query = self._url.decode("latin-1").partition("?")
        return Head(self._parser.get_method().decode("latin-1"), path, query, headers), problem

    def _too_large(self) -> Refusal:
        return Refusal(413, f"The request is larger than {self._bounds.body} bytes.", retry=False)
