"""Anthropic's wire as bytes: server-sent events, whole messages, error bodies and headers. Pure; `anthropic.py` sends what this makes.

The shapes are those of the public Messages API (streaming), as Claude Code 2.1 reads them.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from claudecluster.testing.scenario import Point, Tokens, Turn

ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
POINTS: tuple[Point, ...] = ("before", "start", "mid-text", "after-text", "mid-tool", "after-tool")
SIGNATURE = "c2NyaXB0ZWQ="
PIECE = 24  # characters of text in one delta


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer with its names: what is needed to write it on the wire."""

    id: str
    model: str
    turn: Turn
    tool_ids: tuple[str, ...]
    usage: Tokens

    @property
    def stop_reason(self) -> str:
        """Why it ends: as the turn says, else by whether it calls tools."""
        return self.turn.stop_reason or ("tool_use" if self.turn.tools else "end_turn")


@dataclass(frozen=True, slots=True)
class Step:
    """One event of a stream. `point` is what has been reached once it is out; `text` marks pieces that are paced."""

    data: bytes
    point: Point | None = None
    text: bool = False


def steps(reply: Reply) -> Iterator[Step]:
    """Yield an answer as a stream's events, in order."""
    opening = _message(reply, content=[], stop_reason=None, output=1)
    yield Step(_event("message_start", {"message": opening}), "start")
    yield Step(_event("ping", {}))
    index = 0
    if reply.turn.thinking:
        yield from _thinking_steps(reply.turn.thinking)
        index = 1
    if reply.turn.text:
        yield from _text_steps(reply.turn.text, index)
        index += 1
    for offset, (tool, identity) in enumerate(zip(reply.turn.tools, reply.tool_ids, strict=True), start=index):
        block = {"type": "tool_use", "id": identity, "name": tool.name, "input": {}}
        yield Step(_event("content_block_start", {"index": offset, "content_block": block}))
        for part, point in _halves(json.dumps(tool.input)):
            yield Step(_event("content_block_delta", {"index": offset, "delta": {"type": "input_json_delta", "partial_json": part}}), point)
        yield Step(_event("content_block_stop", {"index": offset}), "after-tool")
    delta = {"stop_reason": reply.stop_reason, "stop_sequence": None}
    usage = {**reply.usage.model_dump(), "server_tool_use": {"web_search_requests": 0}}
    yield Step(_event("message_delta", {"delta": delta, "usage": usage}))
    yield Step(_event("message_stop", {}))


def whole(reply: Reply) -> dict[str, Any]:
    """Return the answer as one JSON message, for requests that do not stream."""
    thinking = {"type": "thinking", "thinking": reply.turn.thinking, "signature": SIGNATURE}
    content: list[dict[str, Any]] = [thinking] if reply.turn.thinking else []
    content += [{"type": "text", "text": reply.turn.text}] if reply.turn.text else []
    for tool, identity in zip(reply.turn.tools, reply.tool_ids, strict=True):
        content.append({"type": "tool_use", "id": identity, "name": tool.name, "input": tool.input})
    return _message(reply, content=content, stop_reason=reply.stop_reason, output=reply.usage.output_tokens)


def strikes(point: Point, reached: Point | None, *, closing: bool) -> bool:
    """Tell whether a fault at `point` strikes now that `reached` is out. `closing`: all blocks are out, so that nothing later comes."""
    if closing:
        return True
    return reached is not None and POINTS.index(reached) >= POINTS.index(point)


def error(status: int, message: str = "", *, kind: str = "", request: str = "") -> dict[str, Any]:
    """Return an error body in Anthropic's shape."""
    named = kind or ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": named, "message": message or named.replace("_", " ").capitalize()}, "request_id": request}


def error_event(kind: str, message: str) -> bytes:
    """Return an error as it comes inside a stream."""
    return _event("error", {"error": {"type": kind, "message": message or kind.replace("_", " ").capitalize()}})


def ping() -> bytes:
    """Return a ping event."""
    return _event("ping", {})


def estimate(body: Mapping[str, Any]) -> int:
    """Return about how many tokens a request is: four characters each."""
    weighed = {key: body.get(key) for key in ("system", "messages", "tools") if body.get(key)}
    return max(1, len(json.dumps(weighed, ensure_ascii=False)) // 4)


def claimed(turn: Turn, body: Mapping[str, Any]) -> Tokens:
    """Return the usage an answer claims: the turn's own, else an estimate in which everything but the newest message was cached."""
    if turn.usage is not None:
        return turn.usage
    prompt, output = estimate(body), max(1, (len(turn.text) + sum(len(json.dumps(tool.input)) + 12 for tool in turn.tools)) // 4)
    messages = body.get("messages", [])
    fresh = prompt if len(messages) < 3 else min(prompt, max(1, len(json.dumps(messages[-1])) // 4))
    creation = max(0, fresh - 4)
    return Tokens(
        input_tokens=fresh - creation, output_tokens=output, cache_creation_input_tokens=creation, cache_read_input_tokens=prompt - fresh
    )


def limit_headers(now: float, served: int) -> dict[str, str]:
    """Return the rate-limit headers an API key gets; source: docs.claude.com, API, rate limits."""
    reset = (datetime.fromtimestamp(now, UTC) + timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%SZ")
    limits = {"requests": 4000, "tokens": 4_400_000, "input-tokens": 4_000_000, "output-tokens": 400_000}
    headers: dict[str, str] = {}
    for name, limit in limits.items():
        used = served if name == "requests" else served * 1000
        headers[f"anthropic-ratelimit-{name}-limit"] = str(limit)
        headers[f"anthropic-ratelimit-{name}-remaining"] = str(max(0, limit - used))
        headers[f"anthropic-ratelimit-{name}-reset"] = reset
    return headers


def _thinking_steps(thinking: str) -> Iterator[Step]:
    deltas = [{"type": "thinking_delta", "thinking": thinking}, {"type": "signature_delta", "signature": SIGNATURE}]
    yield Step(_event("content_block_start", {"index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}}))
    for delta in deltas:
        yield Step(_event("content_block_delta", {"index": 0, "delta": delta}))
    yield Step(_event("content_block_stop", {"index": 0}))


def _text_steps(text: str, index: int) -> Iterator[Step]:
    yield Step(_event("content_block_start", {"index": index, "content_block": {"type": "text", "text": ""}}))
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    for number, piece in enumerate(pieces):
        middle: Point | None = "mid-text" if number == (len(pieces) - 1) // 2 else None
        yield Step(_event("content_block_delta", {"index": index, "delta": {"type": "text_delta", "text": piece}}), middle, text=True)
    yield Step(_event("content_block_stop", {"index": index}), "after-text")


def _halves(text: str) -> Iterator[tuple[str, Point | None]]:
    middle = len(text) // 2
    yield text[:middle], "mid-tool"
    yield text[middle:], None


def _message(reply: Reply, *, content: list[dict[str, Any]], stop_reason: str | None, output: int) -> dict[str, Any]:
    usage = {**reply.usage.model_dump(), "output_tokens": output, "service_tier": "standard"}
    usage["cache_creation"] = {"ephemeral_5m_input_tokens": reply.usage.cache_creation_input_tokens, "ephemeral_1h_input_tokens": 0}
    return {
        "id": reply.id,
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": usage,
    }


def _event(kind: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()
