"""How many tokens a conversation will be for a local model, before it is asked.

Estimator: UTF-8 bytes / 3.6, 4 tokens for each message, 8 for each tool, 800 for each image; times a factor per model that learns from what
the server counted (`prompt_eval_count`, `prompt_tokens`). Bytes rather than characters, because tokenizers cut other scripts finer.
Used for `count_tokens`, for the 400 before an overflow, and for the clamp of the answer's length. It is never used for money.
"""

from dataclasses import dataclass, field

import orjson

from claudecluster.gateway.local.requests.conversation import Conversation

BYTES_PER_TOKEN = 3.6
PER_LINE, PER_TOOL, PER_PICTURE = 4, 8, 800
LEAST, MOST = 0.4, 2.5  # factors beyond these come from servers that count only what their cache had not
SLOW = 0.3  # weight of a new measurement


def raw(conversation: Conversation) -> int:
    """Return the estimate before any learning."""
    size = 0
    fixed = PER_LINE * len(conversation.lines) + PER_TOOL * len(conversation.tools)
    for line in conversation.lines:
        size += len(line.text.encode("utf-8", "replace"))
        size += sum(len(call.name) + len(orjson.dumps(dict(call.arguments))) for call in line.calls)
        fixed += PER_PICTURE * len(line.pictures)
    for tool in conversation.tools:
        size += len(tool.name) + len(tool.description.encode("utf-8", "replace")) + len(orjson.dumps(dict(tool.schema)))
    return fixed + int(size / BYTES_PER_TOKEN)


@dataclass(slots=True)
class Estimator:
    """Learns each model's factor. Until a model has answered once, `margin` is wide."""

    _factors: dict[str, float] = field(default_factory=dict)

    def tokens(self, model: str, conversation: Conversation) -> int:
        """Return the tokens this prompt will likely be."""
        return int(raw(conversation) * self._factors.get(model, 1.0))

    def margin(self, model: str) -> float:
        """Return by how much an estimate must exceed a limit before it is believed rather than tried."""
        return 1.05 if model in self._factors else 1.25

    def learn(self, model: str, conversation: Conversation, counted: int) -> None:
        """Take the server's own count of a prompt."""
        guess = raw(conversation)
        if guess <= 0 or counted <= 0:
            return
        factor = counted / guess
        if not LEAST <= factor <= MOST:
            return
        old = self._factors.get(model)
        self._factors[model] = factor if old is None else old + SLOW * (factor - old)

    def refused(self, model: str, conversation: Conversation, limit: int) -> int:
        """Take the news that this prompt exceeded `limit`; return an estimate that does too, so that the next one is known before."""
        guess = max(1, raw(conversation))
        least = (limit + 1) / guess
        self._factors[model] = max(self._factors.get(model, 1.0), min(least * 1.06, MOST))
        return max(limit + 1, int(guess * self._factors[model]))
