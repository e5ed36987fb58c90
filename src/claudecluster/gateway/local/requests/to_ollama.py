"""Write a conversation as a body for Ollama's native `/api/chat` (docs/api.md, api/types.go of ollama/ollama)."""

from typing import Any, Literal

from claudecluster.gateway.local.requests.conversation import Conversation, Line, Target, Wishes

Thinking = Literal["follow", "on", "off", "unsaid"]


def written(conversation: Conversation, target: Target, *, keep_alive: str = "", thinking: Thinking = "follow") -> dict[str, Any]:
    """Return the body. Nothing is cut silently: an overflow is a 400 (`truncate`), and so is a full context (`shift`)."""
    body: dict[str, Any] = {
        "model": target.model,
        "messages": [_message(line) for line in conversation.lines],
        "stream": True,
        "truncate": False,
        "shift": False,
        "options": _options(conversation.wishes, target),
    }
    if conversation.tools:
        body["tools"] = [
            {"type": "function", "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.schema)}}
            for tool in conversation.tools
        ]
    elif conversation.wishes.schema is not None:  # a grammar and tools at once would forbid the calls
        body["format"] = dict(conversation.wishes.schema)
    if keep_alive:
        body["keep_alive"] = keep_alive
    think = _think(conversation.wishes, target, thinking)
    if think is not None:
        body["think"] = think
    return body


def _message(line: Line) -> dict[str, Any]:
    message: dict[str, Any] = {"role": line.role, "content": line.said()}
    if line.pictures:
        message["images"] = [picture.data for picture in line.pictures]
    if line.calls:
        message["tool_calls"] = [
            {"id": call.id, "function": {"index": index, "name": call.name, "arguments": dict(call.arguments)}}
            for index, call in enumerate(line.calls)
        ]
    if line.role == "tool":
        message.update(tool_name=line.tool, tool_call_id=line.call_id)
    return message


def _options(wishes: Wishes, target: Target) -> dict[str, Any]:
    options: dict[str, Any] = {"num_ctx": target.context, "num_predict": min(wishes.max_tokens, target.max_output or target.context)}
    for name in ("temperature", "top_p", "top_k"):
        value = getattr(wishes, name)
        if value is not None:
            options[name] = value
    if wishes.stop:
        options["stop"] = list(wishes.stop)
    return options


def _think(wishes: Wishes, target: Target, thinking: Thinking) -> bool | str | None:
    if not target.thinking or thinking == "unsaid":  # a model without the capability answers 400 to the mere word
        return None
    wanted = wishes.thinking if thinking == "follow" else thinking == "on"
    if not target.levels:
        return wanted
    return (wishes.effort or "medium") if wanted else "low"
