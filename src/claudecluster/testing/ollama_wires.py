"""The replies of the scripted Ollama server, and the three wires it writes them on: its own, OpenAI's and Anthropic's."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from aiohttp import web


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model makes. A string is what it wrote where it should have been JSON."""

    name: str
    arguments: Mapping[str, Any] | str


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, and what goes wrong with it.

    `error` with a status other than 200 is refused before the stream, with 200 it ends the stream as an `error` object. `cut_after` closes the
    connection after that many pieces, `dies` stops the whole server while it loads the model. `hold` is waited for before the headers,
    or after `hold_after` pieces; `wait` and `pause` are seconds before the headers and before each piece.
    """

    text: str = ""
    calls: Sequence[ToolCall] = ()
    thinking: str = ""
    done_reason: str = "stop"
    status: int = 200
    error: str = ""
    cut_after: int | None = None
    dies: bool = False
    hold: asyncio.Event | None = None
    hold_after: int | None = None
    wait: float = 0.0
    pause: float = 0.0
    piece: int = 12
    prompt_tokens: int = 0
    answer_tokens: int = 7

    def pieces(self) -> list[str]:
        """Return the text as it is streamed."""
        return [self.text[start : start + self.piece] for start in range(0, len(self.text), self.piece)]


class Wire(Protocol):
    """One way to write replies."""

    media_type: str

    def refusal(self, status: int, message: str) -> web.Response:
        """Return an HTTP error."""
        ...

    def whole(self, reply: Reply, model: str, tokens: int) -> web.Response:
        """Return the reply at once."""
        ...

    def stream(self, reply: Reply, model: str, tokens: int) -> list[bytes]:
        """Return the reply piece by piece."""
        ...


def unread(raw: str) -> str:
    """Return what Ollama says when a model's tool call does not parse."""
    return f"error parsing tool call: raw='{raw}', err=invalid character in string literal"


class Chat:
    """`/api/chat`: NDJSON; arguments are objects, so what does not parse is an error."""

    media_type = "application/x-ndjson"

    def refusal(self, status: int, message: str) -> web.Response:
        """Return an HTTP error."""
        return web.json_response({"error": message}, status=status)

    def whole(self, reply: Reply, model: str, tokens: int) -> web.Response:
        """Return the reply at once."""
        message: dict[str, Any] = {"role": "assistant", "content": reply.text}
        for call in reply.calls:
            if isinstance(call.arguments, str):
                return self.refusal(500, unread(call.arguments))
        if reply.error:
            return self.refusal(500, reply.error)
        if reply.thinking:
            message["thinking"] = reply.thinking
        if reply.calls:
            message["tool_calls"] = [_native(call, index) for index, call in enumerate(reply.calls)]
        return web.json_response(self._chunk(model, message) | _finished(reply, tokens))

    def stream(self, reply: Reply, model: str, tokens: int) -> list[bytes]:
        """Return the reply piece by piece."""
        messages: list[dict[str, Any]] = []
        if reply.thinking:
            messages.append({"role": "assistant", "content": "", "thinking": reply.thinking})
        messages += [{"role": "assistant", "content": piece} for piece in reply.pieces()]
        lines: list[dict[str, Any]] = [self._chunk(model, message) for message in messages]
        for index, call in enumerate(reply.calls):
            if isinstance(call.arguments, str):
                return [_line(line) for line in [*lines, {"error": unread(call.arguments)}]]
            lines.append(self._chunk(model, {"role": "assistant", "content": "", "tool_calls": [_native(call, index)]}))
        if reply.error:
            lines.append({"error": reply.error})
        else:
            lines.append(self._chunk(model, {"role": "assistant", "content": ""}) | _finished(reply, tokens))
        return [_line(line) for line in lines]

    @staticmethod
    def _chunk(model: str, message: Mapping[str, Any]) -> dict[str, Any]:
        return {"model": model, "created_at": "2026-01-01T00:00:00.000000Z", "message": message, "done": False}


class OpenAi:
    """`/v1/chat/completions`: arguments are a string, whatever stands in it, and come in pieces."""

    media_type = "text/event-stream"

    def refusal(self, status: int, message: str) -> web.Response:
        """Return an HTTP error."""
        error = {"message": message, "type": "invalid_request_error" if status < 500 else "api_error", "param": None, "code": None}
        return web.json_response({"error": error}, status=status)

    def whole(self, reply: Reply, model: str, tokens: int) -> web.Response:
        """Return the reply at once."""
        message: dict[str, Any] = {"role": "assistant", "content": reply.text}
        if reply.calls:
            message["tool_calls"] = [_openai(call, index) for index, call in enumerate(reply.calls)]
        choice = {"index": 0, "message": message, "finish_reason": _reason(reply)}
        return web.json_response({**self._chunk(model), "object": "chat.completion", "choices": [choice], "usage": _usage(reply, tokens)})

    def stream(self, reply: Reply, model: str, tokens: int) -> list[bytes]:
        """Return the reply piece by piece."""
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        if reply.thinking:
            deltas.append({"reasoning_content": reply.thinking})
        deltas += [{"content": piece} for piece in reply.pieces()]
        for index, call in enumerate(reply.calls):
            whole = _openai(call, index)
            text = whole["function"]["arguments"]
            deltas.append({"tool_calls": [{**whole, "function": {**whole["function"], "arguments": text[:5]}}]})
            deltas += [{"tool_calls": [{"index": index, "function": {"arguments": text[at : at + 9]}}]} for at in range(5, len(text), 9)]
        chunks = [{**self._chunk(model), "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        if reply.error:
            return [_event(chunk) for chunk in [*chunks, {"error": {"message": reply.error, "type": "api_error"}}]]
        chunks.append({**self._chunk(model), "choices": [{"index": 0, "delta": {}, "finish_reason": _reason(reply)}]})
        chunks.append({**self._chunk(model), "choices": [], "usage": _usage(reply, tokens)})
        return [*map(_event, chunks), b"data: [DONE]\n\n"]

    @staticmethod
    def _chunk(model: str) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": model}


class Anthropic:
    """`/v1/messages`: no pings, no cache fields, the prompt's true size only at the end."""

    media_type = "text/event-stream"

    def refusal(self, status: int, message: str) -> web.Response:
        """Return an HTTP error."""
        kind = {400: "invalid_request_error", 404: "not_found_error", 503: "overloaded_error"}.get(status, "api_error")
        return web.json_response({"type": "error", "error": {"type": kind, "message": message}}, status=status)

    def whole(self, reply: Reply, model: str, tokens: int) -> web.Response:
        """Return the reply at once."""
        usage = {"input_tokens": tokens, "output_tokens": reply.answer_tokens}
        message = self._message(model) | {"content": _blocks(reply), "stop_reason": _stop(reply), "usage": usage}
        return web.json_response(message)

    def stream(self, reply: Reply, model: str, tokens: int) -> list[bytes]:
        """Return the reply piece by piece."""
        start = self._message(model) | {"content": [], "stop_reason": None, "usage": {"input_tokens": tokens // 2, "output_tokens": 0}}
        events: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
        for index, block in enumerate(_blocks(reply)):
            empty, deltas = _opened(block, reply)
            events.append({"type": "content_block_start", "index": index, "content_block": empty})
            events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
            events.append({"type": "content_block_stop", "index": index})
        if reply.error:
            events.append({"type": "error", "error": {"type": "api_error", "message": reply.error}})
        else:
            usage = {"input_tokens": tokens, "output_tokens": reply.answer_tokens}
            events.append({"type": "message_delta", "delta": {"stop_reason": _stop(reply), "stop_sequence": None}, "usage": usage})
            events.append({"type": "message_stop"})
        return [b"event: " + str(event["type"]).encode() + b"\n" + _event(event) for event in events]

    @staticmethod
    def _message(model: str) -> dict[str, Any]:
        return {"id": "msg_ollama", "type": "message", "role": "assistant", "model": model, "stop_sequence": None}


WIRES: Mapping[str, Wire] = {"chat": Chat(), "openai": OpenAi(), "anthropic": Anthropic()}


def _line(value: object) -> bytes:
    return orjson.dumps(value) + b"\n"


def _event(value: object) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _finished(reply: Reply, tokens: int) -> dict[str, Any]:
    counts = {"prompt_eval_count": tokens, "eval_count": reply.answer_tokens}
    return {"done": True, "done_reason": reply.done_reason, "total_duration": 1_000_000, "load_duration": 1000, **counts}


def _native(call: ToolCall, index: int) -> dict[str, Any]:
    return {"id": f"call_{index}", "function": {"index": index, "name": call.name, "arguments": call.arguments}}


def _openai(call: ToolCall, index: int) -> dict[str, Any]:
    text = call.arguments if isinstance(call.arguments, str) else orjson.dumps(call.arguments).decode()
    return {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": call.name, "arguments": text}}


def _usage(reply: Reply, tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "completion_tokens": reply.answer_tokens, "total_tokens": tokens + reply.answer_tokens}


def _reason(reply: Reply) -> str:
    return "tool_calls" if reply.calls and reply.done_reason == "stop" else reply.done_reason


def _stop(reply: Reply) -> str:
    return "max_tokens" if reply.done_reason == "length" else "tool_use" if reply.calls else "end_turn"


def _blocks(reply: Reply) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = [{"type": "thinking", "thinking": reply.thinking, "signature": ""}] if reply.thinking else []
    blocks += [{"type": "text", "text": reply.text}] if reply.text else []
    return [
        *blocks,
        *({"type": "tool_use", "id": f"call_{n}", "name": call.name, "input": call.arguments} for n, call in enumerate(reply.calls)),
    ]


def _opened(block: Mapping[str, Any], reply: Reply) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return how the block starts, and the deltas that fill it."""
    if block["type"] == "text":
        return {"type": "text", "text": ""}, [{"type": "text_delta", "text": piece} for piece in reply.pieces()]
    if block["type"] == "thinking":
        return {**block, "thinking": ""}, [{"type": "thinking_delta", "thinking": block["thinking"]}]
    text = block["input"] if isinstance(block["input"], str) else orjson.dumps(block["input"]).decode()
    return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": text}]
