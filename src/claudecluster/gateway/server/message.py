"""What passes between a connection and the application: requests, replies, and refusals in Anthropic's shape.

`server/connection.py` makes them, `gateway/gateway.py` and the exchange read them. Nothing here touches a socket.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import orjson

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    },
)

# Anthropic's own error types by status (docs: api/errors).
TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    411: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Head:
    """The start of a request. Header names are lower-case; repeated ones are joined with a comma."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request: its body has arrived."""

    head: Head
    body: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error of our own, in the shape Anthropic's clients know. `retry` false tells them not to try again."""

    status: int
    message: str
    type: str = ""
    retry: bool = True
    retry_after: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self, request_id: str = "") -> bytes:
        """Return the JSON document."""
        return error_body(self.status, self.message, self.type, request_id)

    def all_headers(self) -> dict[str, str]:
        """Return the headers that go with it."""
        headers = {"content-type": "application/json", **self.headers}
        if not self.retry:
            headers["x-should-retry"] = "false"
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, round(self.retry_after + 0.49)))
        return headers


def error_body(status: int, message: str, kind: str = "", request_id: str = "") -> bytes:
    """Return an Anthropic error document."""
    document: dict[str, object] = {"type": "error", "error": {"type": kind or TYPES.get(status, "api_error"), "message": message}}
    if request_id:
        document["request_id"] = request_id
    return orjson.dumps(document)


class Reply(Protocol):
    """Where an application writes its answer."""

    @property
    def started(self) -> bool:
        """Whether a status was sent, so that no other can be."""
        ...

    def start(self, status: int, headers: Iterable[tuple[str, str]], *, length: int | None = None) -> None:
        """Send the status and headers, with the first bytes of the body. Without `length`, the body is chunked."""
        ...

    async def write(self, data: bytes) -> None:
        """Send some of the body, waiting while the client does not read."""
        ...

    async def end(self, data: bytes = b"") -> None:
        """Finish the answer, with the last of its body. More than once is fine."""
        ...


class Application(Protocol):
    """What a connection serves."""

    def admit(self, head: Head) -> Refusal | None:
        """Look at a request before its body is read; a Refusal is sent instead of reading on."""
        ...

    async def serve(self, request: Request, reply: Reply) -> None:
        """Answer it. Cancelled when the client goes away."""
        ...


async def refuse(reply: Reply, refusal: Refusal, request_id: str = "") -> None:
    """Send a refusal as the whole answer."""
    body = refusal.body(request_id)
    headers = refusal.all_headers()
    if request_id:
        headers["request-id"] = request_id
    reply.start(refusal.status, headers.items(), length=len(body))
    await reply.end(body)
