"""A stream with its pieces put together: each block's deltas become one. Pure.

So a recorded answer is small, and a secret that was spread over several pieces stands in one, where it can be found.
"""

from typing import Any

from claudecluster.gateway.stream.sse import Frame, Frames, write

GROWING = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


def condense(stream: bytes) -> bytes:
    """Return the same message in fewer events; pings and comments are left out."""
    frames = Frames()
    out: list[bytes] = []
    pending: dict[str, Any] | None = None
    for frame in frames.feed(stream):
        if not frame.data or frame.name == "ping":
            continue
        event = _growing(frame)
        if pending is not None and event is not None and _same(pending, event):
            field = GROWING[event["delta"]["type"]]
            pending["delta"][field] += event["delta"][field]
            continue
        if pending is not None:
            out.append(write("content_block_delta", pending))
        pending = event
        if event is None:
            out.append(frame.raw)
    if pending is not None:
        out.append(write("content_block_delta", pending))
    return b"".join(out) + frames.rest()


def _growing(frame: Frame) -> dict[str, Any] | None:
    """Return an event that adds to a block's text."""
    if frame.name != "content_block_delta":
        return None
    try:
        event = frame.json()
    except ValueError:
        return None
    delta = event.get("delta")
    kind = delta.get("type") if isinstance(delta, dict) else None
    return event if isinstance(delta, dict) and kind in GROWING and isinstance(delta.get(GROWING[kind]), str) else None


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one.get("index") == other.get("index") and one["delta"]["type"] == other["delta"]["type"])
