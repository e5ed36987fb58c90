"""Write a conversation as a body for `/v1/chat/completions` (OpenAI's reference; vLLM, llama.cpp, LM Studio, SGLang take the same)."""

import hashlib
import json
from typing import Any

from claudecluster.gateway.local.requests.conversation import Conversation, Line, Target, Wishes

ROOM = 256  # tokens: with less than this left the server itself should say that it is full


def written(conversation: Conversation, target: Target, prompt_tokens: int) -> dict[str, Any]:
    """Return the body. `prompt_tokens` is the estimate the answer's length is clamped by."""
    wishes = conversation.wishes
    body: dict[str, Any] = {
        "model": target.model,
        "messages": [_message(line) for line in conversation.lines],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    limit = _limit(wishes, target, prompt_tokens)
    if limit is not None:
        body["max_tokens"] = limit
    for name in ("temperature", "top_p", "top_k"):
        value = getattr(wishes, name)
        if value is not None:
            body[name] = value
    if wishes.stop:
        body["stop"] = list(wishes.stop)
    if conversation.tools:
        body["tools"] = [
            {"type": "function", "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.schema)}}
            for tool in conversation.tools
        ]
        body.update(_choice(wishes))
    elif wishes.schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(wishes.schema), "strict": True}}
    return body


def _limit(wishes: Wishes, target: Target, prompt_tokens: int) -> int | None:
    """Return the clamp, None to let the server use what is left: it counts exactly, and answers 400 where prompt and limit exceed it."""
    if target.max_output:
        return min(wishes.max_tokens, target.max_output)
    left = max(ROOM, int((target.context - prompt_tokens) * 0.8))
    return wishes.max_tokens if wishes.max_tokens <= left else None


def _choice(wishes: Wishes) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if wishes.choice == "any":
        said["tool_choice"] = "required"
    elif wishes.choice.startswith("tool:"):
        said["tool_choice"] = {"type": "function", "function": {"name": wishes.choice[5:]}}
    if not wishes.parallel:
        said["parallel_tool_calls"] = False
    return said


def _short(call_id: str) -> str:
    """Return an id of nine letters and digits: Mistral's templates take no other, and nobody minds."""
    return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:9]


def _message(line: Line) -> dict[str, Any]:
    if line.role == "tool":
        return {"role": "tool", "tool_call_id": _short(line.call_id), "content": line.said()}
    if line.pictures:
        parts: list[dict[str, Any]] = [{"type": "text", "text": line.text}] if line.text else []
        parts += [{"type": "image_url", "image_url": {"url": f"data:{shown.media_type};base64,{shown.data}"}} for shown in line.pictures]
        return {"role": line.role, "content": parts}
    if not line.calls:
        return {"role": line.role, "content": line.text}
    calls = [
        {
            "id": _short(call.id),
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)},
        }
        for call in line.calls
    ]
    return {"role": line.role, "content": line.text or None, "tool_calls": calls}
