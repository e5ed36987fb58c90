"""Write a conversation as a clean `/v1/messages` body for servers that speak Anthropic's wire but not all of its dialect.

vLLM, llama.cpp, LM Studio, SGLang and Ollama from 0.14 on: no betas, no cache marks, no system messages in the middle.
"""

from typing import Any

from claudecluster.gateway.local.requests.conversation import Conversation, Line, Target, Wishes

ROOM = 256


def written(conversation: Conversation, target: Target, prompt_tokens: int) -> dict[str, Any]:
    """Return the body. `prompt_tokens` is the estimate the answer's length is clamped by."""
    wishes = conversation.wishes
    left = target.max_output or max(ROOM, int((target.context - prompt_tokens) * 0.8))
    body: dict[str, Any] = {"model": target.model, "max_tokens": min(wishes.max_tokens, left), "stream": True}
    lines = list(conversation.lines)
    if lines and lines[0].role == "system":
        body["system"] = lines.pop(0).text
    body["messages"] = _messages(lines)
    for name in ("temperature", "top_p", "top_k"):
        value = getattr(wishes, name)
        if value is not None:
            body[name] = value
    if wishes.stop:
        body["stop_sequences"] = list(wishes.stop)
    if conversation.tools:
        body["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": dict(tool.schema)} for tool in conversation.tools
        ]
        body.update(_choice(wishes))
    return body


def _choice(wishes: Wishes) -> dict[str, Any]:
    if wishes.choice == "auto" and wishes.parallel:
        return {}
    name = wishes.choice.removeprefix("tool:")
    choice: dict[str, Any] = {"type": "tool", "name": name} if wishes.choice.startswith("tool:") else {"type": wishes.choice}
    if not wishes.parallel:
        choice["disable_parallel_tool_use"] = True
    return {"tool_choice": choice}


def _messages(lines: list[Line]) -> list[dict[str, Any]]:
    """Return alternating messages: results and what the user says after them are one turn on this wire."""
    messages: list[dict[str, Any]] = []
    for line in lines:
        role = "assistant" if line.role == "assistant" else "user"
        content = _content(line)
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += content
        else:
            messages.append({"role": role, "content": content})
    return messages


def _content(line: Line) -> list[dict[str, Any]]:
    if line.role == "tool":
        result: dict[str, Any] = {"type": "tool_result", "tool_use_id": line.call_id, "content": line.text}
        return [{**result, "is_error": True} if line.failed else result]
    content: list[dict[str, Any]] = [{"type": "text", "text": line.text}] if line.text else []
    content += [
        {"type": "image", "source": {"type": "base64", "media_type": shown.media_type, "data": shown.data}} for shown in line.pictures
    ]
    content += [{"type": "tool_use", "id": call.id, "name": call.name, "input": dict(call.arguments)} for call in line.calls]
    return content
