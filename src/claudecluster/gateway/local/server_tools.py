"""Answer requests that only Anthropic's own servers could: Claude Code's web search is a request of its own.

It is answered at once with the error block its tool understands, so the session goes on; no model is asked.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from claudecluster.gateway.local.replies.writing import Event

NO_SEARCH = "Web search is not available while a local model answers. Go on without it, or fetch a known address with another tool."


def only_search(body: Mapping[str, Any]) -> bool:
    """Return whether the request exists only to have Anthropic search the web."""
    tools = body.get("tools")
    if not isinstance(tools, list) or not tools:
        return False
    return all(isinstance(tool, Mapping) and str(tool.get("type", "")).startswith("web_search") for tool in tools)


def search_refused(message_id: str, model: str) -> list[Event]:
    """Return the whole stream that says so."""
    identity = "srvtoolu_" + hashlib.sha256(message_id.encode()).hexdigest()[:24]
    usage = {"input_tokens": 1, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 1}
    message = {"id": message_id, "type": "message", "role": "assistant", "model": model, "content": [], "usage": usage}
    error = {"type": "web_search_tool_result_error", "error_code": "unavailable"}
    blocks: list[Event] = [
        {"type": "server_tool_use", "id": identity, "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": identity, "content": error},
        {"type": "text", "text": ""},
    ]
    events: list[Event] = [{"type": "message_start", "message": {**message, "stop_reason": None, "stop_sequence": None}}]
    for index, block in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        if block["type"] == "text":
            events.append({"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": NO_SEARCH}})
        events.append({"type": "content_block_stop", "index": index})
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    return [*events, {"type": "message_delta", "delta": ended, "usage": usage}, {"type": "message_stop"}]
