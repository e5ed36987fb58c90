"""Tell "the prompt does not fit" from other refusals, and say it in the words that make Claude Code compact by itself."""

import re
from dataclasses import dataclass

import orjson

# One pattern per server; group names where the server says how much. Sources: the servers' own messages as quoted in their trackers.
PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"prompt is too long: (?P<used>\d+) tokens > (?P<limit>\d+)",  # Anthropic
        r"input length exceeds the (?:maximum )?context length",  # Ollama
        r"prompt is longer than the context length",  # Ollama, from 0.30 on
        r"input length \((?P<used>\d+) tokens\) exceeds the model's maximum context length \((?P<limit>\d+)",  # Ollama on MLX
        r"maximum context length is (?P<limit>\d+) tokens.*?\((?P<used>\d+) in the messages",  # vLLM, OpenAI
        r"maximum context length is (?P<limit>\d+) tokens.*?(?:request has|resulted in) (?P<used>\d+)",  # newer vLLM, OpenAI
        r"maximum context length is (?P<limit>\d+) tokens",
        r"input \((?P<used>\d+) tokens\) is longer than the model's context length \((?P<limit>\d+)",  # SGLang
        r"request \((?P<used>\d+) tokens\) exceeds the available context size \((?P<limit>\d+)",  # llama.cpp
        r"exceeds? the available context size",
        r"tokens to keep from the initial prompt is greater than the context length",  # LM Studio
        r"loaded with context length of only (?P<limit>\d+)",  # LM Studio
        r"context_length_exceeded|exceed_context_size|context (?:length|window|size) (?:was |has been |is )?exceeded",
    )
)


@dataclass(frozen=True, slots=True)
class Overflow:
    """The prompt does not fit; 0 where the server did not say how large it was or may be."""

    used: int = 0
    limit: int = 0


def overflow(message: str) -> Overflow | None:
    """Return the overflow a server's error text speaks of, None if it is about something else."""
    for pattern in PATTERNS:
        found = pattern.search(message)
        if found is not None:
            said = found.groupdict()
            return Overflow(int(said.get("used") or 0), int(said.get("limit") or 0))
    return None


def error_body(kind: str, message: str) -> bytes:
    """Return an error as Anthropic shapes it."""
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})


def too_long(used: int, limit: int) -> bytes:
    """Return the body of the 400 Claude Code compacts on; it drops old turns by the difference of the two numbers."""
    return error_body("invalid_request_error", f"prompt is too long: {max(used, limit + 1)} tokens > {limit} maximum")
