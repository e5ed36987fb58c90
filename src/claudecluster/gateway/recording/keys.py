"""What makes two requests of two runs the same one: the conversation, without what differs from run to run. Pure.

Ids, numbers, dates and absolute paths differ; so do the client's own notes (system messages and reminders), which tell of the
machine and the day. What is left is hashed.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import orjson

from claudecluster.gateway.provider import Ask

REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>", re.DOTALL)
VARYING = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|\b[0-9a-f]{12,}\b|(?:/[\w.@%+~-]+){2,}/?|\d+")


def exact(ask: Ask) -> str:
    """Return the name of a request that says the same thing in the same conversation."""
    messages = ask.payload.get("messages")
    said = [_message(message) for message in messages if isinstance(message, Mapping)] if isinstance(messages, list) else []
    return _hash([ask.path, ask.stream, ask.model, [each for each in said if each is not None]])


def shape(ask: Ask) -> str:
    """Return the name of a request that stands at the same place of a conversation."""
    messages = ask.payload.get("messages")
    turns = sum(1 for each in messages if isinstance(each, Mapping) and each.get("role") != "system") if isinstance(messages, list) else 0
    return _hash([ask.path, ask.stream, ask.model, turns])


def _message(message: Mapping[str, Any]) -> list[Any] | None:
    if message.get("role") == "system":
        return None
    return [message.get("role"), _content(message.get("content"))]


def _content(content: object) -> object:
    if isinstance(content, str):
        return VARYING.sub("#", REMINDER.sub("", content)).strip()
    if isinstance(content, list):
        return [said for each in content if (said := _content(each))]
    if isinstance(content, Mapping):
        return {
            str(key): _content(value)
            for key, value in sorted(content.items())
            if key not in {"cache_control", "id", "tool_use_id", "signature"}
        }
    return content if isinstance(content, bool) or content is None else "#"


def _hash(document: object) -> str:
    return hashlib.blake2b(orjson.dumps(document), digest_size=12).hexdigest()
