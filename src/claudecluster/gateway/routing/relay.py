"""The client's side of one request, over all the answers it takes until one of them is whole.

The exchange hands it answers one after another. It sends what may be sent, keeps the message well-formed whatever breaks, and
says what the client has already seen. It chooses nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import orjson

from claudecluster.gateway.provider import MESSAGES, Answer, Ask, Cause, Failure, Provider
from claudecluster.gateway.server.message import Refusal, Reply, error_body, refuse
from claudecluster.gateway.stream.splice import Splicer
from claudecluster.gateway.stream.sse import PING, Frames, TooLong, parse
from claudecluster.gateway.stream.tally import Tally

T = TypeVar("T")
EVENT_STREAM = "text/event-stream"
UNKNOWN = "unknown"  # which of its models a provider will take is its own choice, and not yet made
LARGEST = 64 * 1024 * 1024
LARGEST_ERROR = 1024 * 1024


class Relay:
    """One client's answer. `pings` is the longest silence, in seconds, while a local model is at work."""

    def __init__(self, reply: Reply, ask: Ask, request_id: str, pings: float = 5.0) -> None:
        self._reply = reply
        self._ask = ask
        self._request_id = request_id
        self._pings = pings
        self._splicer = Splicer()
        self._early = b""

    @property
    def committed(self) -> bool:
        """Whether the client has seen what nobody else can go on from."""
        return self._splicer.committed

    @property
    def tools(self) -> bool:
        """Whether the client has seen a whole tool call."""
        return self._splicer.tools

    async def ask(self, provider: Provider, ask: Ask) -> Answer:
        """Send the request, keeping a streaming client awake while a local model loads. Raises Failure."""
        if provider.kind != "local" or not ask.stream:
            return await provider.send(ask)
        return await self._awake(provider.send(ask), provider, UNKNOWN)

    async def take(self, answer: Answer, provider: Provider, tally: Tally, good: Callable[[], None]) -> None:
        """Relay a whole answer; `good` is called as soon as it proves to be one. Raises Failure where it is none or breaks off."""
        if not 200 <= answer.status < 300:
            raise await _refused(answer)
        if self._ask.stream:
            await self._stream(answer, provider, tally, good)
        else:
            await self._document(answer, provider, tally, good)

    async def go_on(self) -> None:
        """Make ready for another answer to the same request."""
        self._early = b""
        if (out := self._splicer.resume()) and self._reply.started:
            await self._reply.write(out)

    async def close(self) -> None:
        """End a message that broke off, so that the client can go on from what it has."""
        await self._reply.end(self._splicer.end())

    async def fail(self, failure: Failure, extra: Mapping[str, str]) -> None:
        """Give the client the failure: as it came, where it came as an HTTP error."""
        if self._reply.started:
            document = failure.body if failure.body.startswith(b"{") else error_body(failure.status or 502, failure.message, failure.type)
            await self._reply.end(b"event: error\ndata: %b\n\n" % document.replace(b"\n", b" ").replace(b"\r", b" "))
        elif failure.cause is Cause.STATUS:
            headers = {"content-type": "application/json", "request-id": self._request_id, **failure.headers, **extra}
            self._reply.start(failure.status, headers.items(), length=len(failure.body))
            await self._reply.end(failure.body)
        else:
            status = 529 if failure.type == "overloaded_error" else 429 if failure.type == "rate_limit_error" else 502
            await refuse(self._reply, Refusal(status, failure.message, failure.type, headers=extra), self._request_id)

    async def _stream(self, answer: Answer, provider: Provider, tally: Tally, good: Callable[[], None]) -> None:
        if EVENT_STREAM not in answer.headers.get("content-type", EVENT_STREAM):
            raise Failure(Cause.MALFORMED, f"{provider.name} answered a stream with {answer.headers['content-type'][:80]}.")
        frames = Frames()
        proven = False
        async with aclosing(self._pieces(answer, provider)) as pieces:
            async for piece in pieces:
                await self._feed(frames, piece, answer, provider, tally)
                if not proven and self._splicer.started:
                    proven = True
                    good()
        if not self._splicer.finished and (rest := frames.rest().strip()):
            await self._feed(Frames(), rest + b"\n\n", answer, provider, tally)
        if not self._splicer.finished:
            raise Failure(Cause.CUT if proven else Cause.MALFORMED, f"{provider.name} broke off before the end of its answer.")
        await self._reply.end()

    async def _feed(self, frames: Frames, piece: bytes, answer: Answer, provider: Provider, tally: Tally) -> None:
        out: list[bytes] = []
        failure: Failure | None = None
        try:
            for raw in frames.cut(piece):
                if self._splicer.plain(raw):
                    out.append(raw)
                    continue
                frame = parse(raw)
                if b'"usage"' in frame.data:
                    tally.event(_parsed(frame.data))
                out.append(self._splicer.feed(frame))
        except Failure as caught:
            failure = caught
        except TooLong as error:
            failure = Failure(Cause.MALFORMED, str(error))
        self._early += b"".join(out)
        # Until the message starts nothing binds us to this provider, but a client waiting for a local one needs its pings.
        if self._early and (self._splicer.started or (provider.kind == "local" and failure is None)):
            data, self._early = self._early, b""
            if not self._reply.started:
                self._start(answer.headers, provider, tally.model or answer.model or self._ask.model)
            await (self._reply.end if self._splicer.finished else self._reply.write)(data)
        if failure is not None:
            raise failure

    async def _document(self, answer: Answer, provider: Provider, tally: Tally, good: Callable[[], None]) -> None:
        body = await _read(answer, LARGEST)
        document = _parsed(body)
        if not document or (self._ask.path == MESSAGES and document.get("type") != "message"):
            raise Failure(Cause.MALFORMED, f"{provider.name} answered with something that is no message.")
        if self._ask.path == MESSAGES:
            tally.document(document)
        good()
        headers = self._headers(answer.headers, provider, tally.model or answer.model or self._ask.model)
        self._reply.start(answer.status, headers.items(), length=len(body))
        await self._reply.end(body)

    def _start(self, headers: Mapping[str, str], provider: Provider, model: str) -> None:
        self._reply.start(200, self._headers({"content-type": EVENT_STREAM, **headers}, provider, model).items())

    def _headers(self, headers: Mapping[str, str], provider: Provider, model: str) -> dict[str, str]:
        return {
            "request-id": self._request_id,
            **headers,
            "x-claudecluster-provider": provider.name,
            "x-claudecluster-model": model,
        }

    async def _pieces(self, answer: Answer, provider: Provider) -> AsyncGenerator[bytes, None]:
        if provider.kind != "local":
            async for piece in answer.body:
                yield piece
            return
        body = aiter(answer.body)
        with suppress(StopAsyncIteration):
            while True:
                yield await self._awake(anext(body), provider, answer.model or self._ask.model)

    async def _awake(self, work: Awaitable[T], provider: Provider, model: str) -> T:
        """Wait for something of a local model's, with a ping to the client at each silence."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=self._pings))[0]:
                if not self._reply.started:
                    self._start({"cache-control": "no-cache"}, provider, model)
                await self._reply.write(PING)
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError, StopAsyncIteration, Failure):
                    await task


async def _refused(answer: Answer) -> Failure:
    body = await _read(answer, LARGEST_ERROR)
    error = _parsed(body).get("error")
    told: Mapping[str, Any] = error if isinstance(error, dict) else {}
    message = str(told.get("message") or f"HTTP {answer.status}")
    return Failure(Cause.STATUS, message, status=answer.status, type=str(told.get("type") or ""), headers=answer.headers, body=body)


async def _read(answer: Answer, limit: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in answer.body:
        size += len(piece)
        if size > limit:
            raise Failure(Cause.MALFORMED, f"The answer is larger than {limit} bytes.")
        pieces.append(piece)
    return b"".join(pieces)


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
