"""Read the NDJSON of Ollama's `/api/chat` (docs/api.md): one JSON object a line, an `error` object at any point."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from claudecluster.gateway.local.replies.deltas import Broke, Called, Counted, Delta, Ended, Said, Thought
from claudecluster.gateway.local.replies.framing import Lines


@dataclass(slots=True)
class OllamaReader:
    """Bytes in, deltas out."""

    _lines: Lines = field(default_factory=Lines)

    def feed(self, data: bytes) -> list[Delta]:
        """Return what these bytes complete."""
        return [delta for line in self._lines.feed(data) for delta in _line(line)]

    def close(self) -> list[Delta]:
        """Return what was still waiting for a line end."""
        return [delta for line in self._lines.close() for delta in _line(line)]


def _line(line: bytes) -> list[Delta]:
    if not line.strip():
        return []
    try:
        said = orjson.loads(line)
    except orjson.JSONDecodeError:
        return [Broke("the server sent a line that is not JSON")]
    if not isinstance(said, dict):
        return [Broke("the server sent a line that is no object")]
    if said.get("error"):
        return [Broke(str(said["error"]))]
    message = said.get("message")
    deltas = _message(message) if isinstance(message, dict) else []
    if said.get("done"):
        deltas += [Counted(said.get("prompt_eval_count"), said.get("eval_count")), Ended(length=said.get("done_reason") == "length")]
    return deltas


def _message(message: Mapping[str, Any]) -> list[Delta]:
    deltas: list[Delta] = []
    if message.get("thinking"):
        deltas.append(Thought())
    if message.get("content"):
        deltas.append(Said(str(message["content"])))
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            arguments = function.get("arguments")
            deltas.append(Called(str(function.get("name") or ""), arguments if isinstance(arguments, dict | str) else {}))
    return deltas
