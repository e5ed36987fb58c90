"""One well-formed answer for the client, out of one or more upstream streams of which any may break off anywhere.

The relay feeds it. Pure. What it rests on was tried against Claude Code: a tool runs as soon as its block has ended, so a block
that ended is never sent again; a turn that ends with `max_tokens` is taken up by the client itself, with all it has seen.

- Nothing, or only thinking, was shown: another stream goes on inside the same message (`resume`).
- Text or half a tool call was shown: the turn ends with `max_tokens`; the client asks for the rest, and runs no half call.
- A tool call was shown whole: the turn ends with `tool_use`; the client sends its result.
"""

from dataclasses import dataclass
from typing import Any

import orjson

from claudecluster.gateway.provider import Cause, Failure
from claudecluster.gateway.stream.sse import Frame, write

SOFT = frozenset({"thinking", "redacted_thinking"})  # blocks that commit nobody to anything
DATA = len(b"event: content_block_delta\ndata: ")
POISON = ",\x00,\x00,\x00"  # no JSON parser, however lenient, reads on over it, wherever it stands


@dataclass(slots=True)
class _Block:
    """A content block that has begun and not ended. `ours` is its index in the message the client sees."""

    kind: str
    theirs: int
    ours: int
    json: str = ""
    shown: bool = False
    mark: bytes = b""  # how the events begin that add to its text, once one was shown


class Splicer:
    """What the client has seen of the message so far, and what it must see next."""

    def __init__(self) -> None:
        self.started = False  # the client has seen message_start
        self.finished = False  # the client has seen message_stop
        self.committed = False  # the client has seen what another stream cannot take back
        self.tools = False  # the client has seen a whole tool call
        self._reason = False  # the client has seen the stop reason
        self._next = 0  # our index for the next block
        self._last = -1  # the last index the present stream has used
        self._begun = False  # the present stream's message_start has come
        self._joined = False  # the present stream goes on in a message that another one began
        self._block: _Block | None = None
        self._held = b""  # the start of a block, until something of it comes
        self._output = 0

    def feed(self, frame: Frame) -> bytes:
        """Return what the client is to be sent for an event: the event itself wherever that is right.

        Raises Failure at an error event and at anything that a Messages stream cannot hold. The stream is over for us then.
        """
        if not frame.data:
            return self._flush() + frame.raw
        try:
            event = frame.json()
        except ValueError as error:
            raise Failure(Cause.MALFORMED, f"The stream holds an event that is not JSON: {error}") from None
        kind = event.get("type") or frame.name
        if kind == "error":
            raise _error(event, frame.data)
        if kind == "ping":
            return self._flush() + frame.raw
        if self.finished:
            return b""  # nothing comes after message_stop
        if kind == "message_start":
            return self._start(frame)
        if not self._begun:
            raise Failure(Cause.MALFORMED, f"The stream begins with {str(kind)[:40]}.")
        step = STEPS.get(str(kind))
        return self._flush() + frame.raw if step is None else step(self, event, frame)

    def plain(self, raw: bytes) -> bool:
        """Whether an event only adds to text that is being shown as it comes, and may be sent as it is. Nearly all of a stream is that."""
        block = self._block
        if block is None or not block.mark or not raw.startswith(block.mark):
            return False
        try:
            return isinstance(orjson.loads(raw[DATA:-2])["delta"], dict)
        except (ValueError, TypeError, KeyError):
            return False

    def resume(self) -> bytes:
        """Make ready for another stream to go on in the same message; returns what must be sent before it. Only while not `committed`."""
        out = self._close_block()
        self._joined = self.started
        self._begun = False
        self._last = -1
        return out

    def end(self) -> bytes:
        """Return what ends the message properly though its stream broke off. Only once `started`."""
        if self.finished:
            return b""
        out = self._close_block()
        if not self._reason:
            delta = {"stop_reason": "tool_use" if self.tools else "max_tokens", "stop_sequence": None}
            out += write("message_delta", {"type": "message_delta", "delta": delta, "usage": {"output_tokens": max(1, self._output)}})
        self.finished = True
        return out + write("message_stop", {"type": "message_stop"})

    def _start(self, frame: Frame) -> bytes:
        if self._begun:
            raise Failure(Cause.MALFORMED, "The stream starts a second message.")
        self._begun = True
        if self.started:
            return b""
        self.started = True
        return frame.raw

    def _open(self, event: dict[str, Any], frame: Frame) -> bytes:
        block = event.get("content_block")
        index = event.get("index")
        if self._reason or self._block is not None or not isinstance(block, dict) or not isinstance(index, int) or index <= self._last:
            raise Failure(Cause.MALFORMED, "The stream starts a content block out of turn.")
        self._last = index
        self._block = _Block(str(block.get("type")), index, self._next if self._joined else index)
        self._next = self._block.ours + 1
        self._held = self._shifted(event, frame)
        return b""

    def _delta(self, event: dict[str, Any], frame: Frame) -> bytes:
        block = self._current(event)
        delta = event.get("delta")
        if not isinstance(delta, dict):
            raise Failure(Cause.MALFORMED, "The stream holds a delta without content.")
        if block.kind == "tool_use" and delta.get("type") == "input_json_delta":
            piece = delta.get("partial_json")
            block.json += piece if isinstance(piece, str) else ""
            if not block.json:  # an empty input would be run as it is if the rest never came
                self._held += self._shifted(event, frame)
                return b""
        out = self._flush() + self._shifted(event, frame)
        if block.kind != "tool_use" and not self._joined:
            begun, found, _ = frame.raw.partition(b'"delta"')
            block.mark = begun + found
        self.committed = self.committed or block.kind not in SOFT
        return out

    def _stop(self, event: dict[str, Any], frame: Frame) -> bytes:
        block = self._current(event)
        out = self._flush() + self._shifted(event, frame)
        self.committed = self.committed or block.kind not in SOFT
        self.tools = self.tools or block.kind == "tool_use"
        self._block = None
        return out

    def _message_delta(self, event: dict[str, Any], frame: Frame) -> bytes:
        usage = event.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("output_tokens"), int):
            self._output = usage["output_tokens"]
        delta = event.get("delta")
        if not isinstance(delta, dict) or not delta.get("stop_reason"):
            return self._flush() + frame.raw
        out = self._close_block() + frame.raw
        self._reason = self.committed = True
        return out

    def _message_stop(self, _event: dict[str, Any], frame: Frame) -> bytes:
        if not self._reason:
            raise Failure(Cause.MALFORMED, "The stream stops without a stop reason.")
        out = self._close_block() + frame.raw
        self.finished = True
        return out

    def _current(self, event: dict[str, Any]) -> _Block:
        if self._block is None or event.get("index") != self._block.theirs:
            raise Failure(Cause.MALFORMED, "The stream goes on with a content block that is not open.")
        return self._block

    def _shifted(self, event: dict[str, Any], frame: Frame) -> bytes:
        if not self._joined or self._block is None or self._block.ours == self._block.theirs:
            return frame.raw
        return write(frame.name or str(event["type"]), {**event, "index": self._block.ours})

    def _flush(self) -> bytes:
        held, self._held = self._held, b""
        if held and self._block is not None:
            self._block.shown = True
        return held

    def _close_block(self) -> bytes:
        """Return the end of the open block; one of which nothing was shown is forgotten."""
        block, self._block = self._block, None
        self._held = b""
        if block is None:
            return b""
        if not block.shown:
            self._next = block.ours
            return b""
        out = b""
        if block.kind == "tool_use":
            if _whole(block.json):
                self.tools = True
            elif self.tools:  # beside a whole call, `tool_use` is the stop reason: nobody may run this half
                poison = {"type": "input_json_delta", "partial_json": POISON}
                out = write("content_block_delta", {"type": "content_block_delta", "index": block.ours, "delta": poison})
        return out + write("content_block_stop", {"type": "content_block_stop", "index": block.ours})


STEPS = {
    "content_block_start": Splicer._open,  # noqa: SLF001 - the class's own table
    "content_block_delta": Splicer._delta,  # noqa: SLF001 - the class's own table
    "content_block_stop": Splicer._stop,  # noqa: SLF001 - the class's own table
    "message_delta": Splicer._message_delta,  # noqa: SLF001 - the class's own table
    "message_stop": Splicer._message_stop,  # noqa: SLF001 - the class's own table
}


def _whole(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except ValueError:
        return False


def _error(event: dict[str, Any], body: bytes) -> Failure:
    error = event.get("error")
    told = error if isinstance(error, dict) else {}
    kind = str(told.get("type") or "api_error")
    return Failure(Cause.ERROR_EVENT, str(told.get("message") or "The stream ended in an error."), type=kind, body=body)
