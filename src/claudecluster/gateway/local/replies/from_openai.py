"""Read the stream of `/v1/chat/completions` (OpenAI's reference, "chat completion chunk"); calls arrive in pieces and leave whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from claudecluster.gateway.local.replies.deltas import Broke, Called, Counted, Delta, Ended, Said, Thought
from claudecluster.gateway.local.replies.framing import Events


@dataclass(slots=True)
class _Pieces:
    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class OpenAiReader:
    """Bytes in, deltas out."""

    _events: Events = field(default_factory=Events)
    _calls: dict[int, _Pieces] = field(default_factory=dict)
    _reason: str = ""
    _stop: str = ""
    _done: bool = False

    def feed(self, data: bytes) -> list[Delta]:
        """Return what these bytes complete."""
        return [delta for event in self._events.feed(data) for delta in self._event(event)]

    def close(self) -> list[Delta]:
        """Return what was still waiting; `Ended` only if the server said that it ended."""
        deltas = [delta for event in self._events.close() for delta in self._event(event)]
        return deltas if self._done or not self._reason else [*deltas, *self._end()]

    def _event(self, data: bytes) -> list[Delta]:
        if data.strip() == b"[DONE]":
            return [] if self._done else self._end()
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            return [Broke("the server sent an event that is not JSON")]
        if not isinstance(chunk, dict):
            return []
        if chunk.get("error"):
            error = chunk["error"]
            return [Broke(str(error.get("message") or error) if isinstance(error, dict) else str(error))]
        deltas: list[Delta] = []
        for choice in chunk.get("choices") or ():
            deltas += self._choice(choice)
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            deltas.append(Counted(usage.get("prompt_tokens"), usage.get("completion_tokens")))
        return deltas

    def _choice(self, choice: Mapping[str, Any]) -> list[Delta]:
        message = choice.get("delta") or choice.get("message") or {}
        deltas: list[Delta] = []
        if message.get("reasoning_content") or message.get("reasoning"):
            deltas.append(Thought())
        if message.get("content"):
            deltas.append(Said(str(message["content"])))
        for call in message.get("tool_calls") or ():
            deltas += self._piece(call)
        if choice.get("finish_reason"):
            self._reason = str(choice["finish_reason"])
            self._stop = choice["stop_reason"] if isinstance(choice.get("stop_reason"), str) else ""  # vLLM names the sequence
            deltas += self._whole()
        return deltas

    def _piece(self, call: Mapping[str, Any]) -> list[Delta]:
        function = call.get("function") or {}
        index, name, arguments = int(call.get("index") or 0), str(function.get("name") or ""), function.get("arguments")
        text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode() if arguments else ""
        identity = str(call.get("id") or "")
        old = self._calls.get(index)
        done: list[Delta] = []
        if old is None or (name and identity and identity != old.id):  # some servers give every parallel call index 0
            done = self._whole()
            self._calls[index] = _Pieces(identity, name, text)
        else:
            old.name = old.name or name
            old.arguments += text
        return done or [Thought()]  # a sign of life while a long call is written

    def _whole(self) -> list[Delta]:
        calls: list[Delta] = [Called(call.name, call.arguments, cut=self._reason == "length") for call in self._calls.values()]
        self._calls = {}
        return calls

    def _end(self) -> list[Delta]:
        self._done = True
        return [*self._whole(), Ended(self._reason == "length", self._stop)]
