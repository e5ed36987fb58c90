"""Write deltas as Anthropic's stream events (docs.anthropic.com "Streaming messages"), and fold such events into one message.

The stream is well-formed whatever comes in: blocks open and close in order, calls carry valid JSON and ids of their own, no text block is
empty (Anthropic would refuse it later as history), thoughts never show. Nothing here knows a network or a clock.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from claudecluster.gateway.local.replies.calls import Catalogue, Unusable
from claudecluster.gateway.local.replies.deltas import Called, Counted, Delta, Ended, Said
from claudecluster.gateway.local.replies.prose import Prose

Event = dict[str, Any]
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
SILENCE = "(The model ended its turn without an answer.)"
PER_TOKEN = 4  # characters, for servers that do not count


def sse(events: Iterable[Event]) -> bytes:
    """Return the events as they go over the wire."""
    return b"".join(b"event: " + event["type"].encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n" for event in events)


@dataclass(slots=True)
class Writer:
    """Deltas in, events out, for one message. `prompt_tokens` is the estimate shown until the server has counted."""

    message_id: str
    model: str
    catalogue: Catalogue
    prompt_tokens: int = 0
    parallel: bool = True
    said: str = ""
    calls: int = 0
    unusable: list[Unusable] = field(default_factory=list)
    counted: Counted = field(default_factory=Counted)
    ended: Ended | None = None
    _prose: Prose = field(init=False)
    _started: bool = False
    _index: int = 0
    _open: bool = False
    _space: str = ""

    def __post_init__(self) -> None:
        self._prose = Prose(self.catalogue)

    def feed(self, delta: Delta) -> list[Event]:
        """Return the events this leads to; none before the first sign of the model."""
        events = self._start()
        match delta:
            case Said(text):
                for inner in self._prose.feed(text):
                    events += self._content(inner)
            case Called():
                for inner in self._prose.close():
                    events += self._content(inner)
                events += self._call(delta)
            case Counted(prompt, answer):
                self._count(prompt, answer)
            case Ended():
                self.ended = delta
        return events

    def settle(self) -> list[Event]:
        """Return what was held back, once the server has nothing more to say."""
        cut = self.ended is not None and self.ended.length
        return self._start() + [event for delta in self._prose.close(cut=cut) for event in self._content(delta)]

    @property
    def failed(self) -> bool:
        """Whether the model should be asked once more: it called nothing that can be called, or did not say a word."""
        if self.ended is not None and self.ended.length:
            return False
        return not self.calls and (bool(self.unusable) or not self.said)

    def again(self) -> None:
        """Forget how the first try ended; a second one follows in the same message."""
        self.unusable, self.ended, self._prose = [], None, Prose(self.catalogue)

    def close(self) -> list[Event]:
        """Return the end of the message. Calls nobody can use are shown as text: lost is only what was never sent."""
        events = self.settle()
        for unusable in self.unusable:
            events += self._text(f"\n\n(A call of {unusable.name} could not be read:)\n{unusable.text}\n")
        if not self.said and not self.calls:
            self._space = ""
            events += self._text(SILENCE)
        events += self._shut()
        ended = self.ended or Ended()
        reason = "max_tokens" if ended.length else "tool_use" if self.calls else "stop_sequence" if ended.stop else "end_turn"
        delta = {"stop_reason": reason, "stop_sequence": ended.stop or None}
        events.append({"type": "message_delta", "delta": delta, "usage": self.usage()})
        events.append({"type": "message_stop"})
        return events

    def usage(self) -> dict[str, int]:
        """Return the tokens: the server's count where it gave one, else the estimate."""
        prompt, answer = self.counted.prompt, self.counted.answer
        return {
            "input_tokens": self.prompt_tokens if prompt is None else prompt,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": max(1, len(self.said) // PER_TOKEN) if answer is None else answer,
        }

    def _count(self, prompt: int | None, answer: int | None) -> None:
        old = self.counted
        self.counted = Counted(old.prompt if prompt is None else prompt, old.answer if answer is None else answer)

    def _start(self) -> list[Event]:
        if self._started:
            return []
        self._started = True
        message: Event = {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**self.usage(), "output_tokens": 1},
        }
        return [{"type": "message_start", "message": message}]

    def _content(self, delta: Delta) -> list[Event]:
        match delta:
            case Said(text):
                return self._text(text)
            case Called():
                return self._call(delta)
            case _:
                return []

    def _text(self, text: str) -> list[Event]:
        if not self._open and not text.strip():
            self._space += text
            return []
        events: list[Event] = []
        text, self._space = self._space + text, ""
        if not self._open:
            text, self._open = text.lstrip("\n"), True
            events.append({"type": "content_block_start", "index": self._index, "content_block": {"type": "text", "text": ""}})
        self.said += text
        events.append({"type": "content_block_delta", "index": self._index, "delta": {"type": "text_delta", "text": text}})
        return events

    def _shut(self) -> list[Event]:
        self._space = ""
        if not self._open:
            return []
        self._open = False
        self._index += 1
        return [{"type": "content_block_stop", "index": self._index - 1}]

    def _call(self, called: Called) -> list[Event]:
        settled = self.catalogue.settle(called)
        if isinstance(settled, Unusable):
            self.unusable.append(settled)
            return []
        if self.calls and not self.parallel:
            return []
        events = self._shut()
        index, self._index = self._index, self._index + 1
        # Derived, not random: the same reply replayed gives the same ids, two messages never share one.
        identity = "toolu_" + hashlib.sha256(f"{self.message_id}/{self.calls}".encode()).hexdigest()[:24]
        self.calls += 1
        block = {"type": "tool_use", "id": identity, "name": settled.name, "input": {}}
        text = orjson.dumps(settled.arguments, option=orjson.OPT_NON_STR_KEYS).decode()
        return [
            *events,
            {"type": "content_block_start", "index": index, "content_block": block},
            {"type": "content_block_delta", "index": index, "delta": {"type": "input_json_delta", "partial_json": text}},
            {"type": "content_block_stop", "index": index},
        ]


def folded(events: Iterable[Event]) -> dict[str, Any]:
    """Return the one message the events tell, as a request without `stream` is answered."""
    message: dict[str, Any] = {}
    content: list[dict[str, Any]] = []
    for event in events:
        match event:
            case {"type": "message_start", "message": start}:
                message = dict(start)
            case {"type": "content_block_start", "content_block": block}:
                content.append(dict(block))
            case {"type": "content_block_delta", "delta": {"text": text}}:
                content[-1]["text"] += text
            case {"type": "content_block_delta", "delta": {"partial_json": text}}:
                content[-1]["input"] = orjson.loads(text)
            case {"type": "message_delta", "delta": delta, "usage": usage}:
                message |= {**delta, "usage": {**message.get("usage", {}), **usage}}
    return {**message, "content": content}
