"""Read the stream of another server's `/v1/messages` (docs.anthropic.com "Streaming messages"), to be written anew in full dialect."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from claudecluster.gateway.local.replies.deltas import Broke, Called, Counted, Delta, Ended, Said, Thought
from claudecluster.gateway.local.replies.framing import Events


@dataclass(slots=True)
class AnthropicReader:
    """Bytes in, deltas out."""

    _events: Events = field(default_factory=Events)
    _name: str = ""
    _input: Mapping[str, Any] = field(default_factory=dict)
    _arguments: str = ""
    _reason: str = ""
    _stop: str = ""

    def feed(self, data: bytes) -> list[Delta]:
        """Return what these bytes complete."""
        return [delta for event in self._events.feed(data) for delta in self._event(event)]

    def close(self) -> list[Delta]:
        """Return what was still waiting for its blank line."""
        return [delta for event in self._events.close() for delta in self._event(event)]

    def _event(self, data: bytes) -> list[Delta]:
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            return [Broke("the server sent an event that is not JSON")]
        found: list[Delta] = []
        match event if isinstance(event, dict) else {}:
            case {"type": "message_start", "message": {"usage": {"input_tokens": int(prompt)}}} if prompt:
                found = [Counted(prompt)]
            case {"type": "content_block_start", "content_block": dict(block)}:
                found = self._start(block)
            case {"type": "content_block_delta", "delta": dict(delta)}:
                found = self._delta(delta)
            case {"type": "content_block_stop"} if self._name:
                found = self._call()
            case {"type": "message_delta"}:
                found = self._close(event)
            case {"type": "message_stop"}:
                found = [*(self._call() if self._name else ()), Ended(self._reason == "max_tokens", self._stop)]
            case {"type": "error", "error": error}:
                found = [Broke(str(error.get("message") or error) if isinstance(error, dict) else str(error))]
        return found

    def _start(self, block: Mapping[str, Any]) -> list[Delta]:
        if block.get("type") == "tool_use":
            given = block.get("input")
            self._name, self._arguments = str(block.get("name") or ""), ""
            self._input = given if isinstance(given, dict) else {}
            return [Thought()]
        return [Said(str(block["text"]))] if block.get("type") == "text" and block.get("text") else [Thought()]

    def _delta(self, delta: Mapping[str, Any]) -> list[Delta]:
        if delta.get("type") == "text_delta":
            return [Said(str(delta["text"]))] if delta.get("text") else []
        if delta.get("type") == "input_json_delta":
            self._arguments += str(delta.get("partial_json") or "")
        return [Thought()]

    def _call(self) -> list[Delta]:
        called = Called(self._name, self._arguments or self._input)
        self._name = ""
        return [called]

    def _close(self, event: Mapping[str, Any]) -> list[Delta]:
        delta, usage = event.get("delta"), event.get("usage")
        if isinstance(delta, dict):
            self._reason = str(delta.get("stop_reason") or "")
            self._stop = str(delta.get("stop_sequence") or "")
        counts = usage if isinstance(usage, dict) else {}
        return [Counted(counts.get("input_tokens") or None, counts.get("output_tokens"))]
