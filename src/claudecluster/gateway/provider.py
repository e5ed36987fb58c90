"""The inner seam of the gateway: what a model back end is asked, what it answers, and how it fails.

The exchange calls it; `gateway/upstream` (Anthropic) and `gateway/local` (everything on this machine) implement it.
It decides nothing: routing, admission, splicing and metering stand above it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol

MESSAGES = "/v1/messages"
COUNT_TOKENS = "/v1/messages/count_tokens"
MODELS = "/v1/models"

Kind = Literal["anthropic", "local"]


class Verdict(Enum):
    """What the exchange should do after a failure."""

    RETRY = "retry"  # the same provider may well answer a second time
    NEXT = "next"  # this provider will not answer soon: ask another one
    STOP = "stop"  # nobody else would or should answer: hand it to the client untouched


class Cause(Enum):
    """How an answer went missing."""

    STATUS = "status"  # an HTTP status of 400 or more
    UNREACHABLE = "unreachable"  # no connection, or it closed before the headers
    SILENT = "silent"  # headers or bytes did not come in time
    ERROR_EVENT = "error-event"  # an SSE `error` event inside a 200
    CUT = "cut"  # the stream ended before `message_stop`
    MALFORMED = "malformed"  # a 200 that is no Anthropic answer: HTML, bad JSON, nothing at all


class Failure(Exception):
    """One request to one provider that did not succeed. `body` is what the client would be shown, if anything."""

    def __init__(
        self,
        cause: Cause,
        message: str,
        *,
        status: int = 0,
        type: str = "",  # noqa: A002 - Anthropic's own name for it
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message
        self.status = status
        self.type = type
        self.headers: Mapping[str, str] = headers or {}
        self.body = body


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as the client made it. Treat `payload` as read-only.

    `path` is MESSAGES, COUNT_TOKENS or MODELS; `query` has no question mark. `headers` have lower-case names, without
    hop-by-hop headers and credentials. `body` is byte for byte what came in, `payload` the same parsed (empty for GET).
    `model` is what the client named, or what a route put in its place; `credentials` is a user's own login in flight;
    `scope` names the task and attempt it comes from, if it comes from a run, `category` and `files` say what work it is.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    payload: Mapping[str, Any]
    model: str
    stream: bool
    session: str = ""
    scope: str = ""
    category: str = ""
    files: tuple[str, ...] = ()
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)


async def _nothing() -> None:
    return


@dataclass(slots=True)
class Answer:
    """A provider's answer. `headers` have lower-case names; `model` is the one that really answers, if known by now.

    A streamed 200 gives Anthropic's SSE bytes in any chunking, everything else one JSON document. `body` raises Failure where
    the back end fails on the way. `close` gives up at once what is still coming; it is always called, also after the end.
    """

    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]
    model: str = ""
    close: Callable[[], Awaitable[None]] = _nothing


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a provider could answer now, and why not. `models` are the ids it has, if it can say."""

    ok: bool
    why: str = ""
    models: tuple[str, ...] = ()


class Provider(Protocol):
    """A model back end that speaks Anthropic's Messages API towards us, whatever it speaks on its other side."""

    @property
    def name(self) -> str:
        """The name it is chosen and reported by."""
        ...

    @property
    def kind(self) -> Kind:
        """Whether requests leave for Anthropic or stay on the user's own machines."""
        ...

    def load(self) -> float:
        """Return how busy it is: requests in flight over what it serves at once; above 1 a new one would wait."""
        ...

    async def send(self, ask: Ask) -> Answer:
        """Ask it once, never twice. HTTP errors are Answers with their status and body; raises Failure where no answer came."""
        ...

    def classify(self, failure: Failure) -> Verdict:
        """Say what should be done after one of its failures."""
        ...

    async def healthy(self) -> Health:
        """Ask cheaply whether it could answer, without spending tokens. Never raises."""
        ...

    async def aclose(self) -> None:
        """Let go of connections."""
        ...
