"""One request from a client, answered: asked of a provider, relayed as it comes, and metered.

The doors call it with a request that was let in. Sockets, tokens and paths are settled before.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from claudecluster.gateway.metering.prices import Prices
from claudecluster.gateway.provider import COUNT_TOKENS, MESSAGES, Answer, Ask, Cause, Failure, Provider
from claudecluster.gateway.server.message import HOP_BY_HOP, Refusal, Reply, Request, error_body, refuse
from claudecluster.gateway.stream.sse import Frames
from claudecluster.gateway.stream.tally import Tally
from claudecluster.kit.clock import Clock
from claudecluster.model.usage import Metered
from claudecluster.ports.gateway import Visitor

CONSUMED = HOP_BY_HOP | {"host", "content-length", "accept-encoding", "authorization", "x-api-key", "cookie", "expect"}
OURS = ("x-claude-code-", "x-claudecluster-")
SESSION = "x-claude-code-session-id"
LARGEST_ERROR = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Visit:
    """Who asks, and which login of their own they may use instead of ours."""

    visitor: Visitor
    user: str = ""


class Exchange:
    """Answers requests."""

    def __init__(self, providers: tuple[Provider, ...], prices: Prices, clock: Clock, record: Callable[[Metered], None]) -> None:
        self._providers = providers
        self._prices = prices
        self._clock = clock
        self._record = record

    async def answer(self, visit: Visit, request: Request, reply: Reply) -> None:
        """Answer one request to the model API. Cancelled when the client goes away; what was used until then is metered."""
        request_id = "req_" + uuid.uuid4().hex[:24]
        try:
            ask = make_ask(request)
        except ValueError as error:
            await refuse(reply, Refusal(400, str(error), retry=False), request_id)
            return
        tally = Tally()
        provider = self._providers[0]
        status = 0
        try:
            answer = await provider.send(ask)
            try:
                status = answer.status
                await self._relay(answer, ask, tally, reply, request_id)
            finally:
                await answer.close()
        except Failure as failure:
            if reply.started:
                raise
            await refuse(reply, Refusal(failure.status or 502, failure.message), request_id)
        finally:
            if status == 200 and ask.path == MESSAGES and (tally.message or tally.model):
                self._meter(visit, ask, tally, provider)

    async def _relay(self, answer: Answer, ask: Ask, tally: Tally, reply: Reply, request_id: str) -> None:
        headers = {"request-id": request_id, **answer.headers}
        if ask.stream and answer.status == 200:
            frames = Frames()
            async for piece in answer.body:
                if not reply.started:
                    reply.start(200, headers.items())
                for frame in frames.feed(piece):
                    count(frame.data, tally)
                await reply.write(piece)
            return
        body = await whole(answer)
        if answer.status == 200 and ask.path == MESSAGES:
            tally.document(_parsed(body))
        reply.start(answer.status, headers.items(), length=len(body))
        await reply.write(body)
        await reply.end()

    def _meter(self, visit: Visit, ask: Ask, tally: Tally, provider: Provider) -> None:
        now = self._clock.now()
        model = tally.model or ask.model
        cost = self._prices.cost(tally, model, now) if provider.kind == "anthropic" else 0.0
        visitor = visit.visitor
        key = f"{provider.name}:{tally.message or uuid.uuid4().hex}"
        self._record(
            Metered(
                key,
                visitor.run,
                visitor.task,
                visitor.attempt,
                provider.name,
                model,
                tally.usage(cost),
                now,
                session=ask.session,
                user=visit.user,
            ),
        )


def make_ask(request: Request) -> Ask:
    """Return what a provider is asked. Raises ValueError, in words for the client, if the body is no request."""
    head = request.head
    payload: Mapping[str, Any] = {}
    if head.method == "POST":
        try:
            payload = orjson.loads(request.body)
        except ValueError as error:
            raise ValueError(f"The request body is not valid JSON: {error}") from None
        if not isinstance(payload, dict):
            raise ValueError("The request body must be a JSON object.")
    headers = {name: value for name, value in head.headers.items() if name not in CONSUMED and not name.startswith(OURS)}
    return Ask(
        method=head.method,
        path=head.path,
        query=head.query,
        headers=headers,
        body=request.body,
        payload=payload,
        model=str(payload.get("model") or ""),
        stream=payload.get("stream") is True and head.path != COUNT_TOKENS,
        session=head.headers.get(SESSION, ""),
    )


async def whole(answer: Answer, limit: int = 64 * 1024 * 1024) -> bytes:
    """Return an answer's body. Raises Failure if it breaks off or is larger than anybody would send."""
    pieces: list[bytes] = []
    size = 0
    async for piece in answer.body:
        size += len(piece)
        if size > limit:
            raise Failure(Cause.MALFORMED, f"The answer is larger than {limit} bytes.")
        pieces.append(piece)
    return b"".join(pieces)


def count(data: bytes, tally: Tally) -> None:
    """Count an event that carries usage."""
    if b'"usage"' in data and isinstance(event := _parsed(data), dict):
        tally.event(event)


def _parsed(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except ValueError:
        return None


__all__ = ["Exchange", "Visit", "count", "error_body", "make_ask", "whole"]
