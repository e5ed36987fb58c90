"""What all local providers do alike: read the request, refuse what cannot fit, relay the reply with pings, ask once more where needed.

A provider gives the model, its measures, and a way to ask it; this gives the `Answer`. It opens no connection itself.
"""

import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import orjson

from claudecluster.gateway.local import server_tools
from claudecluster.gateway.local.asking import UNREAD
from claudecluster.gateway.local.estimate import Estimator
from claudecluster.gateway.local.models import Choice, named
from claudecluster.gateway.local.overflow import error_body, overflow, too_long
from claudecluster.gateway.local.pacing import Paced
from claudecluster.gateway.local.replies.calls import Catalogue, Unusable
from claudecluster.gateway.local.replies.deltas import Broke, Delta
from claudecluster.gateway.local.replies.writing import Event, Writer, folded, sse
from claudecluster.gateway.local.requests.conversation import Conversation, Line, Target
from claudecluster.gateway.local.requests.reading import read
from claudecluster.gateway.local.requests.shrinking import asks_for_summary, shrunk
from claudecluster.gateway.local.requests.toolless import in_words
from claudecluster.gateway.provider import Answer, Ask, Cause, Failure, Verdict
from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.model.errors import Refused

Asking = Callable[[Conversation, int], AsyncGenerator[Delta, None]]
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    529: "overloaded_error",
}
CORRECTION = "Your last tool call could not be read: its arguments were not valid JSON. Make the call again with valid JSON arguments."
NUDGE = "You ended your turn without an answer. Continue: call a tool, or say your answer."


def _room(target: Target) -> int:
    """Return the tokens an answer needs at least: a prompt that leaves less is too long already."""
    return min(1024, target.context // 8)


def _fresh() -> str:
    return f"msg_{uuid.uuid4().hex[:24]}"


@dataclass(slots=True)
class Answering:
    """Makes answers. `ping` and `patience` in seconds: between pings, and for an early refusal to become an HTTP status."""

    clock: Clock = field(default_factory=SystemClock)
    estimator: Estimator = field(default_factory=Estimator)
    ping: float = 5.0
    patience: float = 2.0
    strict: bool = False  # the server would cut a too long prompt silently: believe the estimate
    fresh: Callable[[], str] = _fresh

    def count(self, ask: Ask, target: Target) -> Answer:
        """Answer `count_tokens` with the estimate."""
        try:
            tokens = self.estimator.tokens(target.model, _adapted(read(ask.payload, target), target))
        except Refused as error:
            return _refused(400, error.message)
        return _json(200, orjson.dumps({"input_tokens": tokens}), target.model)

    async def answer(self, ask: Ask, target: Target, choice: Choice, asking: Asking) -> Answer:
        """Ask and return the answer as far as it is there. Raises Failure where there is none."""
        if server_tools.only_search(ask.payload):
            return _whole(server_tools.search_refused(self.fresh(), target.model), choice, stream=ask.stream)
        try:
            conversation = read(ask.payload, target)
        except Refused as error:
            return _refused(400, error.message)
        tools, conversation = conversation.tools, _adapted(conversation, target)
        if asks_for_summary(conversation):
            conversation = self._fitted(conversation, target)
        guess, limit = self.estimator.tokens(target.model, conversation), target.context - _room(target)
        if guess > limit * (1.0 if self.strict else self.estimator.margin(target.model)):
            return _json(400, too_long(guess, limit), target.model)
        writer = Writer(self.fresh(), target.model, Catalogue(tools), guess, conversation.wishes.parallel)
        source = self._relay(writer, conversation, target, asking)
        if not ask.stream:
            return await self._collected(source, choice)
        paced = Paced(_encoded(source), self.clock, self.ping)
        try:
            await paced.begin(self.patience)
        except Failure as failure:
            await paced.close()
            return _failed(failure, target.model)
        except BaseException:
            await paced.close()
            raise
        return Answer(200, _headers("text/event-stream; charset=utf-8", choice), aiter(paced), target.model, paced.close)

    def _fitted(self, conversation: Conversation, target: Target) -> Conversation:
        """Return a request for a summary such that it fits, with room for the summary."""
        most = target.context - min(8192, target.context // 3)

        def fits(smaller: Conversation) -> bool:
            return self.estimator.tokens(target.model, smaller) <= most

        return conversation if fits(conversation) else shrunk(conversation, fits)

    async def _collected(self, source: AsyncGenerator[list[Event], None], choice: Choice) -> Answer:
        events: list[Event] = []
        try:
            async with aclosing(source):
                async for some in source:
                    events += some
        except Failure as failure:
            return _failed(failure, choice.model)
        return _whole(events, choice, stream=False)

    async def _relay(self, writer: Writer, conversation: Conversation, target: Target, asking: Asking) -> AsyncGenerator[list[Event], None]:
        """Yield the events of one answer, asking a second time with a word on what was wrong where nothing usable came."""
        try:
            for last in (False, True):
                async with aclosing(asking(conversation, writer.prompt_tokens)) as deltas:
                    async for delta in deltas:
                        if isinstance(delta, Broke):
                            self._broken(delta, writer)
                            break
                        if events := writer.feed(delta):
                            yield events
                yield writer.settle()
                if last or not writer.failed:
                    break
                conversation = _corrected(conversation, writer)
                writer.again()
        except Failure as failure:
            raise self._said(failure, conversation, target) from failure
        if writer.counted.prompt:
            self.estimator.learn(target.model, conversation, writer.counted.prompt)
        yield writer.close()

    @staticmethod
    def _broken(broke: Broke, writer: Writer) -> None:
        if not UNREAD.search(broke.message):
            raise Failure(Cause.ERROR_EVENT, broke.message, type="api_error", body=error_body("api_error", broke.message))
        writer.unusable.append(Unusable("a tool", broke.message))

    def _said(self, failure: Failure, conversation: Conversation, target: Target) -> Failure:
        """Return the failure in Anthropic's words; an overflow is what Claude Code compacts on."""
        found = overflow(failure.message)
        if found is None:
            kind = failure.type or KINDS.get(failure.status, "api_error")
            body = failure.body or error_body(kind, f"{target.model}: {failure.message}")
            return Failure(failure.cause, failure.message, status=failure.status, type=kind, headers=failure.headers, body=body)
        limit = found.limit or target.context - _room(target)
        used = found.used or self.estimator.refused(target.model, conversation, limit)
        body = too_long(used, limit)
        message: str = orjson.loads(body)["error"]["message"]
        return Failure(failure.cause, message, status=400, type="invalid_request_error", body=body)


def for_client(choice: Choice, ask: Ask, models: Sequence[str]) -> Choice:
    """Return the choice, degraded unless the client itself named a local model: a route may have put another name in the request."""
    return replace(choice, degraded=not named(str(ask.payload.get("model") or ""), models))


def classify(failure: Failure) -> Verdict:
    """Say what to do after a local failure: an overflow is the client's to mend, a passing fault is worth a second try."""
    if overflow(failure.message) or overflow(failure.body.decode("utf-8", "replace")):
        return Verdict.STOP
    if failure.cause in {Cause.CUT, Cause.ERROR_EVENT, Cause.MALFORMED} or failure.status in {500, 502, 504}:
        return Verdict.RETRY
    return Verdict.NEXT


def _adapted(conversation: Conversation, target: Target) -> Conversation:
    calls = conversation.tools or any(line.calls or line.role == "tool" for line in conversation.lines)
    return in_words(conversation) if calls and not target.tools else conversation


def _corrected(conversation: Conversation, writer: Writer) -> Conversation:
    """Return the conversation with what the model said and what was wrong with it."""
    wrong = "\n".join(unusable.text for unusable in writer.unusable)
    said = "\n\n".join(part for part in (writer.said, wrong) if part)
    told = CORRECTION if writer.unusable else NUDGE
    lines = [*conversation.lines, Line("assistant", said)] if said else list(conversation.lines)
    if lines and lines[-1].role == "user":
        lines[-1] = replace(lines[-1], text=f"{lines[-1].text}\n\n{told}")
    else:
        lines.append(Line("user", told))
    return replace(conversation, lines=tuple(lines))


async def _encoded(source: AsyncGenerator[list[Event], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(source):
        async for events in source:
            if events:
                yield sse(events)


async def _once(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


def _headers(content_type: str, choice: Choice) -> dict[str, str]:
    why = choice.why.encode("ascii", "replace").decode().replace("\n", " ").replace("\r", " ")
    headers = {"content-type": content_type, "x-claudecluster-why": why}
    return {**headers, "x-claudecluster-degraded": "true"} if choice.degraded else headers


def _json(status: int, data: bytes, model: str) -> Answer:
    return Answer(status, {"content-type": "application/json"}, _once(data), model)


def _whole(events: list[Event], choice: Choice, *, stream: bool) -> Answer:
    data = sse(events) if stream else orjson.dumps(folded(events))
    kind = "text/event-stream; charset=utf-8" if stream else "application/json"
    return Answer(200, _headers(kind, choice), _once(data), choice.model)


def _refused(status: int, message: str) -> Answer:
    return _json(status, error_body(KINDS.get(status, "api_error"), message), "")


def _failed(failure: Failure, model: str) -> Answer:
    """Return a server's refusal as the HTTP answer it is. Raises the failure again where there was no answer at all."""
    if failure.cause is not Cause.STATUS and failure.status != 400:
        raise failure
    status = {503: 529, 429: 529}.get(failure.status, failure.status)  # a full queue is Anthropic's "overloaded"
    body = error_body(KINDS[529], f"{model}: {failure.message}") if status == 529 else failure.body
    return _json(status, body, model)
